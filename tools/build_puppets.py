"""Draws the people of UniAVGen Puppet into web/puppets: `python tools/build_puppets.py` (needs espeak-ng)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from uniavgen_core.media.files import write_mp4  # noqa: E402
from uniavgen_core.theatre.clips import Theatre  # noqa: E402
from uniavgen_core.theatre.voices import FPS, SAMPLE_RATE  # noqa: E402

PUPPETS = ROOT / "web" / "puppets"
PEOPLE = {"woman": 11, "man": 99, "old man": 59, "girl": 156, "boy": 161}  # held-out clips


def main() -> None:
    theatre, facts = Theatre(split="held-out"), {}
    for name, index in PEOPLE.items():
        clip, stem = theatre.clip(index), name.replace(" ", "_")
        Image.fromarray(clip.frames[0]).save(PUPPETS / f"{stem}.png", optimize=True)
        wave = torch.from_numpy(clip.waveform)[None]
        write_mp4(PUPPETS / f"{stem}.mp4", torch.from_numpy(clip.frames), FPS, wave, SAMPLE_RATE)
        facts[name] = {"file": stem, "caption": clip.caption, "words": clip.transcript}
    (PUPPETS / "puppets.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    PUPPETS.mkdir(parents=True, exist_ok=True)
    main()
