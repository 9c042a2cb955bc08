"""Writes the moving pictures of the templates: `python tools/build_thumbnails.py FOLDER [NAME ...]`.

FOLDER is ComfyUI's output/video with what the embedded templates saved; with names only those templates
are written. The page asks for NAME.jpg and plays an animated WebP. Nothing made by the released model was at
hand, so its templates show the photograph and what goes in.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

ROOT = Path(__file__).parents[1]
for folder in (str(ROOT), str(ROOT / "tools")):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from build_workflows import LINE, TITLES  # noqa: E402

from uniavgen_core.media.files import read_video  # noqa: E402

SIDE, BAND, FPS = 320, 36, 16
LONGEST = 80  # frames of a picture
PHOTOGRAPH = ROOT / "assets" / "astronaut.jpg"
LABELS = {
    "joint": "image + words",
    "reference_voice": "image + words + voice",
    "continuation": "a video goes on",
    "dubbing": "a voice for a video",
    "audio_driven": "image + speech",
    "edit": "other words in a part",
    "guidance_grid": "s_v x s_a",
    "long_speech": "a script of any length",
    "upscaled": "larger, 24 frames a second",
    "face_mask": "where the model sees the face",
    "several_takes": "several takes, choose one",
    "who_speaks": "two people, who speaks",
    "advanced": "all stages",
}
CLIPS = {"embedded_face_mask": "embedded_face_mask_mask"}  # where it is not named like the workflow
SEVERAL = "embedded_several_takes"  # shows the last four clips, those of takes 1 to 4, in a square


def framed(picture: Image.Image, label: str, line: str = "") -> Image.Image:
    """The picture in a square over a band with the label; `line` is a subtitle."""
    square = Image.new("RGB", (SIDE, SIDE), "#171718")
    square.paste(ImageOps.pad(picture, (SIDE, SIDE - BAND), Image.Resampling.BICUBIC, color="#171718"))
    draw = ImageDraw.Draw(square)
    middle = SIDE / 2, SIDE - BAND / 2
    draw.text(middle, label, "#f0f0f0", ImageFont.load_default(19), anchor="mm")
    if line:
        place = SIDE / 2, SIDE - BAND - 22
        draw.text(place, line, "white", ImageFont.load_default(17), "mm", stroke_width=2, stroke_fill="black")
    return square


def puppet(name: str, clips: Path) -> list[Image.Image]:
    files = sorted(clips.glob(f"uniavgen_{CLIPS.get(name, name)}_0*.mp4"))
    if not files:
        raise SystemExit(f"{clips}: no clip of {name}; run that template first")
    label = LABELS[name.removeprefix("embedded_")]
    clips = [read_video(file).frames[:LONGEST].numpy() for file in files[-4 if name == SEVERAL else -1 :]]
    rows = [np.concatenate(row, axis=2) for row in (clips[:2], clips[2:]) if row]
    frames = np.concatenate(rows, axis=1)
    return [framed(Image.fromarray(frame), label) for frame in frames]


def person(name: str) -> list[Image.Image]:
    photograph, words = ImageOps.fit(Image.open(PHOTOGRAPH), (SIDE, SIDE - BAND)), LINE.split()
    return [
        framed(photograph, LABELS[name], " ".join(words[max(0, count - 4) : count]))
        for count in np.repeat(range(1, len(words) + 1), 4)
    ]


def main(clips: Path, *names: str) -> None:
    for name in names or TITLES:
        frames = puppet(name, clips) if name.startswith("embedded_") else person(name)
        frames[0].save(
            ROOT / "workflows" / f"{TITLES[name]}.jpg",
            "WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=1000 // FPS,
            loop=0,
            quality=70,
            method=6,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
