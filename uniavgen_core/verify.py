"""Parity with golden files: one forward, whole sampling runs, the mel and the speech symbols.

Three kinds, told apart by what is in them: a tiny model with inputs and outputs (a `.safetensors` whose
`.json` lies beside it), a waveform with its mel (`.safetensors`), and texts with their ids (`.json`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .conditioning import Anew, Span, Task, condition
from .errors import UserError
from .media.mel import log_mel, mel_to_latent
from .media.speech import null_symbol_ids, symbol_ids
from .model.config import Config
from .model.dit import DualBranchDiT
from .model.inputs import ActiveParts, Conditioned, References, TextConditioning
from .model.variants import align
from .sampling.defaults import Guidance
from .sampling.guidance import GuidedModel
from .sampling.sampler import integrate, schedule
from .weights.fp8 import use_fp8

TOLERANCE = 1e-4
GOLDEN = Path(__file__).parent / "data" / "golden"  # ships with the package


class Case(NamedTuple):
    """One compared value; `error` is `||a - b|| / ||b||`, for ids and indices 0 or 1."""

    name: str
    error: float


def relative_error(a: Tensor, b: Tensor) -> float:
    """`||a - b|| / ||b||` in float64; infinite where the shapes differ or something is not finite."""
    if a.shape != b.shape or not a.isfinite().all():
        return float("inf")
    a, b = a.double(), b.double()
    norm = b.norm()
    return float((a - b).norm() / norm) if norm > 0 else float((a - b).norm())


def verify(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    fp8: bool = False,
) -> Iterator[Case]:
    """Every case of a golden file, the model's on `device` in `dtype`; `fp8`: its linear weights in fp8.

    Raises:
        UserError: the file is missing, damaged or no golden file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give golden files such as those in {GOLDEN}")
    if path.suffix == ".safetensors":
        try:
            values = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as safetensors ({error}); copy it again") from error
        if "waveform" in values:
            return _mel_cases(values)
        if any(name.startswith("w.") for name in values):
            values = {name: x.to(device) for name, x in values.items()}
            return _model_cases(values, path.with_suffix(".json"), dtype, fp8)
    elif path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON ({error}); copy it again") from error
        if isinstance(content, list) and content and all("ids" in case for case in content):
            return _text_cases(content)
        if isinstance(content, dict) and {"config", "forward"} <= content.keys():
            return iter(())  # describes the .safetensors of the same name
    raise UserError(
        f"{path} holds no golden values; expected tensors with a `.json`, a mel or texts with ids"
    )


def _mel_cases(values: dict[str, Tensor]) -> Iterator[Case]:
    mel = log_mel(values["waveform"])
    yield Case("log_mel", relative_error(mel, values["log_mel"]))
    yield Case("latent", relative_error(mel_to_latent(mel), values["latent"]))


def _text_cases(cases: list[dict]) -> Iterator[Case]:
    for i, case in enumerate(cases):
        language, reference = case["lang"], case.get("ref_text", "")
        yield Case(f"text {i} {language}", symbol_ids(case["text"], language, reference) != case["ids"])
        if "neg_ids" in case:
            yield Case(f"text {i} {language} null", null_symbol_ids(language, reference) != case["neg_ids"])


def _model_cases(
    values: dict[str, Tensor], description: Path, dtype: torch.dtype, fp8: bool
) -> Iterator[Case]:
    if not description.is_file():
        raise UserError(f"{description} is missing; it describes the cases of the .safetensors beside it")
    golden = json.loads(description.read_text(encoding="utf-8"))
    model = _golden_model(golden["config"], values).to(values["in.video"].device, dtype)
    if fp8:
        use_fp8(model)
    given = {name[3:]: x for name, x in values.items() if name.startswith("in.")}
    frames, mels = golden["T"], golden["La"]

    def named(name: str) -> Tensor:
        return given[name.split("[")[0]]  # "cond_video[:, :, :2]": the count says how much is read

    def texts(caption: str, speech: str) -> TextConditioning:
        return TextConditioning(given[caption], model.text_embedding(given[speech]))

    def task(case: dict, reference_voice: bool, v2a: bool) -> Task:
        n_v, n_a = case["vcond"], case["acond"]
        audio = given["cond_audio"][:, :n_a] if n_a else None
        made = condition(
            "continuation",  # any beginning of the two latents, none too
            named(case["cond_video"])[:, :, :n_v],
            audio,
            frames,
            mels,
            anew=Anew(Span(n_v, frames), Span(n_a, mels)),
            reference_image=given["ref_image"],
            reference_mel=given["ref_audio"] if reference_voice else None,
            bands=given["audio"].shape[2],
        )
        return replace(made, v2a=v2a)

    if "plan.a2v_index" in values:
        window = align(model.config, frames, mels).window
        yield Case("plan.a2v_index", float(not torch.equal(window, values["plan.a2v_index"].cpu())))

    with torch.inference_mode():
        for name, case in golden.get("forward", {}).items():
            a2v, v2a = (
                not case.get("zero_con", False) and not case.get(f"no_{way}", False) for way in ("a2v", "v2a")
            )
            given_task = task(case, case.get("ref_audio", False), v2a)
            video, audio = given_task.apply(given["video"], given["audio"])
            out = model(
                video.to(dtype),
                audio.to(dtype),
                torch.tensor([case["t"]], dtype=torch.float32, device=video.device),
                texts(case["caption"], case["text"]).to(dtype),
                References(given_task.reference_image, given_task.reference_mel).to(dtype),
                Conditioned(given_task.conditioned_video, given_task.conditioned_audio),
                ActiveParts(a2v, v2a, _skipped(case)),
            )
            yield Case(f"{name}.video", relative_error(out.video[0], values[f"out.{name}.video"]))
            yield Case(f"{name}.audio", relative_error(out.audio[0], values[f"out.{name}.audio"]))
            wanted = {key for key in values if key.startswith(f"out.{name}.mask.")}
            made = {f"out.{name}.mask.{block}": mask[0] for block, mask in out.face_masks.items()}
            for key in sorted(wanted | made.keys()):
                both = key in wanted and key in made
                error = relative_error(made[key], values[key]) if both else float("inf")
                yield Case(key.removeprefix("out."), error)

        for name, case in golden.get("sampling", {}).items():
            reference_voice = case["task"] == 1  # joint with a reference voice: V2A is off in the full pass
            velocity = GuidedModel(
                model,
                task(case, case.get("ref_audio", reference_voice), v2a=not reference_voice),
                texts("caption", case["text"]),
                texts("neg_caption", case["neg_text"]),
                Guidance(case["s_v"], case["s_a"], case["macfg_prop"], _skipped(case)),
            )
            video, audio = (values[f"samp.{name}.noise_{branch}"] for branch in ("video", "audio"))
            out = integrate(velocity, video, audio, schedule(case["steps"], case["shift"]))
            yield Case(f"sampling {name}.video", relative_error(out.video, values[f"samp.{name}.video"]))
            yield Case(f"sampling {name}.audio", relative_error(out.audio, values[f"samp.{name}.audio"]))


def _skipped(case: dict) -> tuple[int, ...]:
    layer = case.get("slg", -1)
    return () if layer is None or layer < 0 else (layer,)


def _golden_model(sizes: dict, values: dict[str, Tensor]) -> DualBranchDiT:
    weights = {name[2:]: x for name, x in values.items() if name.startswith("w.")}
    config = Config(
        video_dim=sizes["dim"],
        video_heads=sizes["heads"],
        video_ffn=sizes["ffn"],
        audio_dim=sizes["adim"],
        audio_heads=sizes["aheads"],
        audio_ffn=sizes["affn"],
        layers=sizes["layers"],
        interaction_layers=tuple(range(0, sizes["layers"], 2)),
        freq_dim=sizes["freq"],
        caption_dim=sizes["text_dim"],
        caption_length=sizes["text_len"],
        speech_vocab=sizes["vocab"],
        speech_dim=sizes["sdim"],
        speech_layers=len({n for n in weights if n.endswith(".dwconv.weight")}),
        video_channels=weights["patch_embedding.weight"].shape[1],
        audio_channels=weights["audio_embedding.0.weight"].shape[1],
    )
    model = DualBranchDiT(config)
    model.load_state_dict(weights)
    return model.eval()
