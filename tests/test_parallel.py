"""Two processes that run one clip together get what one gets."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import together
import torch
from clips import photograph
from random_parts import RandomWeights
from safetensors.torch import load_file

from uniavgen_core.media import files
from uniavgen_core.model.parallel import TokenShare, split_tokens
from uniavgen_core.oracle import relative_error
from uniavgen_core.pipeline import generate

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    photograph(folder / "image.png")
    return folder


@pytest.fixture(scope="module")
def two(folder) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The results of both processes."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "together.py"), str(rank), str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
    first, second = (load_file(folder / f"{rank}.safetensors") for rank in (0, 1))
    return first, second


@pytest.mark.parametrize("way", ["tokens", "passes"])
@pytest.mark.parametrize("variant", together.VARIANTS)
def test_two_processes_that_share_the_tokens_or_the_passes_sample_what_one_samples(variant, way, two):
    expected = together.runs(together.model_of(variant))
    prefix = f"{variant} {way} "
    first, second = ({k.removeprefix(prefix): v for k, v in x.items() if k.startswith(prefix)} for x in two)
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        assert relative_error(first[name], value) < 1e-5, name
    assert second.keys() >= {name for name in first if "mask" not in name}
    assert all(torch.equal(value, first[name]) for name, value in second.items() if "mask" not in name)


def test_two_processes_make_the_clip_of_one(two, folder):
    alone = generate(replace(together.request(folder), out=str(folder / "alone.mp4")), RandomWeights())
    for name in ("video", "audio"):
        assert relative_error(two[0][f"clip {name}"], getattr(alone.sample, name)) < 1e-5
    clip, expected = (files.read_video(folder / name) for name in ("clip.mp4", "alone.mp4"))
    assert (clip.frames.int() - expected.frames.int()).abs().max() <= 2


class Share(TokenShare):
    """Of one of several processes that are not there."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size


@pytest.mark.parametrize(("tokens", "size"), [(9, 2), (8, 4), (390, 4), (5, 5), (3, 2)])
def test_each_token_of_each_frame_is_one_process_s(tokens, size):
    x = torch.arange(3 * tokens)[None, :, None]
    shares = [Share(rank, size).mine(x, 3, 1) for rank in range(size)]
    assert [share.shape[1] for share in shares] == [3 * n for n in Share(0, size).sizes(tokens)]
    assert torch.equal(torch.cat(shares, dim=1).flatten().sort().values, x.flatten())
    for share in shares:
        assert torch.equal(share.flatten() // tokens, torch.arange(3).repeat_interleave(share.shape[1] // 3))


def test_heads_that_cannot_be_divided_are_refused(released, monkeypatch):
    monkeypatch.setattr("torch.distributed.get_rank", lambda group=None: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 3)
    with (
        pytest.raises(ValueError, match="4 heads cannot be divided among 3 processes"),
        split_tokens(released),
    ):
        pass
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in released.blocks)
