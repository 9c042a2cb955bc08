"""A list becomes a clip and a record for each row; what is there already is not made again."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
from clips import SENTENCE, photograph, speech, talking_video, uniavgen
from PIL import Image
from random_parts import RandomWeights

from uniavgen_core import cli, pipeline
from uniavgen_core.batch import cluster, work
from uniavgen_core.batch.jobs import RELEASE_COLUMNS, Reader
from uniavgen_core.media import files
from uniavgen_core.pipeline import Request, Weights

TEXT = "Hello, show me the moon."
SMALL = ("--steps", 1, "--short-side", 32, "--frames", 5)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Folder with photo.png, voice.wav and clip.mp4 (25 fps, 2 s)."""
    folder = tmp_path_factory.mktemp("real")
    talking_video(folder / "clip.mp4", photograph(folder / "photo.png"), speech(folder / "voice.wav"))
    return folder


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def write_csv(path: Path, rows) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, RELEASE_COLUMNS)
        table.writeheader()
        table.writerows(rows)
    return path


def batch(capfd, jobs, out, *options):
    """`uniavgen batch` in this process: exit code, its report, its notes."""
    code, printed, notes = uniavgen(
        capfd, "batch", jobs, "--out", out, "--workers", 0, "--json", *SMALL, *options
    )
    assert "Traceback" not in notes, notes
    return code, json.loads(printed), notes


def rows_of(real, count=3):
    return [
        {"id": f"clip-{n}", "image": str(real / "photo.png"), "text": TEXT, "seed": n} for n in range(count)
    ]


def reader(out, *options) -> Reader:
    """As the command makes it of its own options."""
    shared = cli._parser().parse_args(["batch", "jobs", "--out", str(out), *map(str, options)])
    weights = Weights()
    return Reader(cli._add_clip, cli._request, shared, weights.settings(), weights.check(), out)


def test_every_row_becomes_the_clip_that_generate_makes_and_a_record_of_it(tmp_path, capfd, real):
    rows = rows_of(real)
    rows[1] |= {"s-v": 1.5, "caption": "a woman in a forest", "steps": 2}
    code, report, _ = batch(capfd, write_jsonl(tmp_path / "jobs.jsonl", rows), tmp_path / "out")
    assert code == 0
    assert (report["rows"], report["made"], report["there"]) == (3, 3, 0)
    names = {f"clip-{n}.{suffix}" for n in range(3) for suffix in ("mp4", "json")}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names

    record = json.loads((tmp_path / "out" / "clip-1.json").read_text())
    assert record["options"] == {
        **{"image": str(real / "photo.png"), "text": TEXT, "caption": "a woman in a forest"},
        **{"seed": 1, "s_v": 1.5, "steps": 2, "short_side": 32, "frames": 5},
    }
    assert (record["id"], record["seed"], record["weights"], record["embedded"]) == ("clip-1", 1, {}, True)
    assert record["seconds"]["total"] >= record["seconds"]["sample"] > 0
    assert record["versions"].keys() == {"uniavgen", "torch", "python"}

    alone = tmp_path / "alone.mp4"
    options = ("--image", real / "photo.png", "--text", TEXT, "--caption", "a woman in a forest", "--seed", 1)
    code, *_ = uniavgen(capfd, "generate", *SMALL, *options, "--s-v", 1.5, "--steps", 2, "--out", alone)
    assert code == 0
    assert alone.read_bytes() == (tmp_path / "out" / "clip-1.mp4").read_bytes()


def test_a_second_call_loads_nothing_and_makes_nothing(tmp_path, capfd, real, monkeypatch):
    jobs = write_jsonl(tmp_path / "jobs.jsonl", rows_of(real, 2))
    batch(capfd, jobs, tmp_path / "out")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}

    def forbidden(*args, **kwargs):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(work, "Worker", forbidden)
    monkeypatch.setattr(cluster, "connected", forbidden)
    for options in ((), ("--workers", 2)):
        code, report, notes = batch(capfd, jobs, tmp_path / "out", *options)
        assert (code, report["made"], report["there"], notes) == (0, 0, 2, "")
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


def test_changed_options_or_files_a_lost_clip_and_a_damaged_record_are_made_again(tmp_path, capfd, real):
    rows, out, own = rows_of(real, 5), tmp_path / "out", tmp_path / "own.png"
    own.write_bytes((real / "photo.png").read_bytes())
    rows[3]["image"] = str(own)
    jobs = write_jsonl(tmp_path / "jobs.jsonl", rows)
    batch(capfd, jobs, out)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.json")}
    rows[0]["seed"] = 7
    write_jsonl(jobs, rows)
    (out / "clip-1.mp4").unlink()
    (out / "clip-2.json").write_text('{"id": "clip-2", ')
    Image.open(own).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(own)
    code, report, notes = batch(capfd, jobs, out)
    assert (code, report["made"], report["there"]) == (0, 4, 1)
    assert "made with other options, weights or files, so made again: 2" in notes
    assert json.loads((out / "clip-0.json").read_text())["seed"] == 7
    changed = {file.name for file in out.glob("*.json") if file.stat().st_mtime_ns != before[file.name]}
    assert changed == {f"clip-{n}.json" for n in range(4)}


BAD_ROWS = {
    "nonsense": "no JSON",
    "[1, 2]": "no JSON object",
    '{"text": "no id"}': "the row has no id",
    '{"id": "../up", "text": "x"}': "cannot be the name of a file",
    '{"id": "CLIP-0", "text": "x", "image": "PHOTO"}': "is that of line 1 too",
    '{"id": "a", "text": "x", "smile": 3}': "'smile' is no option",
    '{"id": "b", "text": "x", "out": "there.mp4"}': "'out' is no option",
    '{"id": "c", "text": "x", "steps": "many"}': "invalid int value",
    '{"id": "d", "text": "x", "image": "PHOTO", "steps": 0}': "0 steps cannot sample",
    '{"id": "e", "image": "PHOTO"}': "nothing to say",
    '{"id": "f", "text": "x", "image": "nowhere.png"}': "nowhere.png: no such file",
    '{"id": "g", "text": "x", "mode": "dubbing"}': "mode dubbing needs --video",
    '{"id": "h", "text": "x", "image": "PHOTO", "skip_layer": 99}': "skip layer 99 does not exist",
    '{"id": "i", "text": "x", "image": {"file": "PHOTO"}}': "image is an object",
}


def test_bad_rows_are_reported_with_their_lines_and_the_others_are_made(tmp_path, capfd, real):
    photo = json.dumps(str(real / "photo.png"))[1:-1]
    bad = [row.replace("PHOTO", photo) for row in BAD_ROWS]
    (tmp_path / "text.png").write_text("no image")
    damaged = {"id": "damaged", "text": TEXT, "image": str(tmp_path / "text.png")}
    jobs = write_jsonl(tmp_path / "jobs.jsonl", [rows_of(real)[0], *bad, "", damaged, rows_of(real)[1]])
    code, report, notes = batch(capfd, jobs, tmp_path / "out")
    assert (code, report["rows"], report["made"]) == (2, len(bad) + 3, 2)
    for line, problem in enumerate(BAD_ROWS.values(), 2):
        assert f"{jobs}, line {line}: " in notes
        (said,) = (fault["message"] for fault in report["refused"] if fault["line"] == line)
        assert problem in said
    ((failed),) = report["failed"]
    assert (failed["id"], failed["line"]) == ("damaged", len(bad) + 3)
    assert "text.png: no image or a damaged one" in failed["error"]
    made = {file.name for file in (tmp_path / "out").iterdir()}
    assert made == {"clip-0.mp4", "clip-0.json", "clip-1.mp4", "clip-1.json"}


def release_rows(real):
    """One row for each of the release's four tasks."""
    photo, voice, clip = (str(real / name) for name in ("photo.png", "voice.wav", "clip.mp4"))
    common = {"speech_content": TEXT, "prompt": "a woman, talking", "lang": "EN"}
    return [
        {"data_id": "joint", "ref_image_path": photo, **common},
        {
            "data_id": "reference-voice",
            "ref_image_path": photo,
            "ref_audio_path": voice,
            "ref_speech_content": SENTENCE,
            **common,
        },
        {"data_id": "dubbing", "video_path": clip, **common},
        {"data_id": "audio-driven", "ref_image_path": photo, "audio_path": voice, **common},
    ]


def test_the_release_s_table_runs_for_its_four_tasks(tmp_path, capfd, real):
    jobs = write_csv(tmp_path / "jobs.csv", release_rows(real))
    # With this seed a voice is heard within the third of a second; other seeds begin later.
    code, report, notes = batch(capfd, jobs, tmp_path / "out", "--seed", 2)
    assert (code, report["made"]) == (0, 4), notes
    for row in release_rows(real):
        record = json.loads((tmp_path / "out" / f"{row['data_id']}.json").read_text())
        assert record["mode"] == row["data_id"]
        clip = files.read_video(tmp_path / "out" / f"{row['data_id']}.mp4")
        assert len(clip.frames) == record["frames"]
        assert clip.audio[0].shape[-1] >= record["samples"]
        assert clip.audio[0].abs().max() > 1e-3


def test_a_table_s_mode_and_files_can_be_said_for_all_rows(tmp_path, real):
    everything = release_rows(real)[3] | {"video_path": "nowhere.mp4", "data_id": "all"}
    jobs = write_csv(tmp_path / "jobs.csv", [everything, {"data_id": "empty", "speech_content": TEXT}])
    (job,), (fault,) = reader(tmp_path, "--mode", "joint", "--seed", 5).read(jobs)
    assert (job.request.mode, job.request.seed, job.request.audio, job.request.video) == (
        "joint",
        5,
        None,
        None,
    )
    assert (fault.line, fault.message) == (3, "mode joint needs --image")


def test_a_file_is_found_beside_the_list_and_a_quoted_line_break_keeps_the_line_numbers(tmp_path, real):
    (tmp_path / "photo.png").write_bytes((real / "photo.png").read_bytes())
    row = {"ref_image_path": "photo.png", "speech_content": TEXT}
    rows = [{"data_id": "a", "prompt": "two\nlines", **row}, {"data_id": "b", **row}]
    jobs, faults = reader(tmp_path).read(write_csv(tmp_path / "jobs.csv", rows))
    assert [(job.line, job.id, job.request.image) for job in jobs] == [
        (2, "a", str(tmp_path / "photo.png")),
        (4, "b", str(tmp_path / "photo.png")),
    ]
    assert faults == []


def test_an_option_of_several_values_is_a_list_and_a_row_s_own_wins(tmp_path, real):
    photo = str(real / "photo.png")
    keyframes = [f"8:{photo}", f"-1:{photo}"]
    rows = [{**rows_of(real, 1)[0], "keyframe": keyframes}, {**rows_of(real, 1)[0], "id": "shared"}]
    rows.append({**rows[0], "id": "lost", "keyframe": "4:nowhere.png"})
    jobs = write_jsonl(tmp_path / "jobs.jsonl", rows)
    (own, shared), (fault,) = reader(tmp_path, "--keyframe", f"4:{photo}").read(jobs)
    assert own.request.keyframes == ((8, photo), (-1, photo))
    assert shared.request.keyframes == ((4, photo),)
    assert (fault.line, fault.message) == (3, "nowhere.png: no such file (keyframe); it is looked for here")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("jobs.jsonl", b"\n\n", "there are no rows"),
        ("jobs.csv", b"text,image\nHello,photo.png\n", "there is no column data_id"),
        ("jobs.csv", b'data_id,prompt\na,"open\n', "no CSV"),
        ("jobs.jsonl", b"\xff\xfe\x00", "no text in UTF-8"),
        ("jobs.jsonl", None, "no such file"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_line(tmp_path, capfd, name, content, problem):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, printed, notes = uniavgen(capfd, "batch", tmp_path / name, "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    (line,) = notes.splitlines()
    assert problem in line


def test_captions_and_images_that_repeat_are_encoded_once_and_parts_loaded_once(tmp_path, real, monkeypatch):
    calls = []

    def counted(name, original):
        def call(self, *args):
            calls.append(name)
            return original(self, *args)

        return call

    for name in ("load_model", "load_vae", "load_caption_encoder", "load_vocoder"):
        monkeypatch.setattr(RandomWeights, name, counted(name, getattr(RandomWeights, name)))
    for name in ("encode_captions", "encode_frames"):
        monkeypatch.setattr(pipeline.Pipeline, name, counted(name, getattr(pipeline.Pipeline, name)))
    worker = work.Worker(RandomWeights())
    request = {"text": TEXT, "image": str(real / "photo.png"), "frames": 5, "short_side": 32, "steps": 1}
    for n, caption in enumerate(("a man", "a man", "a woman")):
        job = work.Job(
            n, str(n), Request("joint", str(tmp_path / f"{n}.mp4"), caption=caption, **request), {}
        )
        assert worker.make(job).error is None
    assert sorted(calls) == sorted(
        ["load_model", "load_vae", "load_caption_encoder", "load_vocoder", "encode_frames"]
        + ["encode_captions"] * 3  # two captions and the empty one of the null pass
    )


def test_without_ray_one_worker_is_this_process_and_more_are_refused(tmp_path, capfd, real, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    jobs = write_jsonl(tmp_path / "jobs.jsonl", rows_of(real, 1))
    code, _, notes = uniavgen(capfd, "batch", jobs, "--out", tmp_path / "out", *SMALL, "--workers", 2)
    assert code == 2
    assert notes == (
        "uniavgen: several workers need Ray, which is not installed: pip install 'uniavgen[cluster]'\n"
    )
    code, printed, notes = uniavgen(capfd, "batch", jobs, "--out", tmp_path / "out", *SMALL)
    assert code == 0
    assert "Ray is not installed, so clips are made one by one" in notes
    assert "1 clip made" in printed


def test_a_killed_worker_s_job_is_done_again_and_every_job_once(tmp_path, real, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'uniavgen[cluster]'")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they wait for the tests beside them
    jobs, _ = reader(tmp_path, *SMALL).read(write_jsonl(tmp_path / "jobs.jsonl", rows_of(real, 4)))
    outcomes, killed = [], None
    with cluster.connected(None, cpus=2) as nodes:
        assert cluster.room(nodes, on_gpu=False, cores=1) == 2
        for outcome in cluster.make_all(jobs, Weights(), workers=2, cores=1):
            outcomes.append(outcome)
            if killed is None:  # it has its next job by now
                killed = outcome.worker
                os.kill(int(killed.rpartition(":")[2]), signal.SIGKILL)
    assert sorted(outcome.job for outcome in outcomes) == [job.id for job in jobs]
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert [outcome.worker for outcome in outcomes].count(killed) == 1
    assert len({outcome.worker for outcome in outcomes}) == 3
    assert all(work.is_made(job, Weights()) for job in jobs)


def test_a_job_found_made_is_not_made_again_by_the_next_worker(tmp_path, real, monkeypatch):
    """The worker may have been killed between the record and its answer."""
    (job,), _ = reader(tmp_path, *SMALL).read(write_jsonl(tmp_path / "jobs.jsonl", rows_of(real, 1)))
    assert work.Worker(Weights()).make(job).error is None
    before = Path(job.request.out).stat().st_mtime_ns
    assert work.Worker(Weights()).make(job).error is None
    assert Path(job.request.out).stat().st_mtime_ns == before
