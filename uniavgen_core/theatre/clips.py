"""The endless synthetic theatre: drawn people who speak, with the truth known for every frame.

A clip is a pure function of (seed, split, index), of frames and size, and of the espeak-ng at hand.
Video runs at 16 fps, audio at 24 kHz; F = 4n + 1 frames last F / 16 s and carry exactly
round(F / 16 * 24000) = 1500 F samples. The splits "train" and "held-out" share no identity and no
sentence. Speech needs espeak-ng (`voices.py`), drawing OpenCV.
"""

from dataclasses import asdict, dataclass

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter, uniform_filter

from ..errors import UserError
from .drawing import (
    CLOTHES,
    EXPRESSIONS,
    HAIRS,
    IRISES,
    OPENING,
    PLACES,
    SKINS,
    SUPERSAMPLING,
    WALLS,
    Identity,
    Performance,
    Scene,
    draw_face,
)
from .voices import (
    FPS,
    SAMPLE_RATE,
    Recording,
    Voice,
    held_out,
    loudness_envelope,
    measure_pitch,
    recording,
)

__all__ = [
    "Clip",
    "Recording",
    "Theatre",
    "Voice",
    "identity_voice",
    "loudness_envelope",
    "measure_aperture",
    "measure_pitch",
    "shows_puppet",
]

SPLITS = ("train", "held-out")
MOTIONS = {
    "still": "holds still",
    "nodding": "nods",
    "swaying": "sways",
    "looking around": "looks around",
    "tilting": "tilts the head",
}
_PLACE_WORDS = {
    "wall": "in front of a {} wall",
    "forest": "in a forest",
    "city": "in the city",
    "sea": "by the sea",
    "bookshelf": "in front of a bookshelf",
    "night sky": "under a night sky",
}
_HEAD = 0.3  # half the head's height, as a share of the picture's shorter side
_VISIBLE = 0.52  # of an open mouth's height, what teeth and tongue leave free


@dataclass(frozen=True)
class Clip:
    """One clip and its truth. F frames, H x W pixels, n = round(F / 16 * 24000) samples.

    frames      uint8 [F, H, W, 3], RGB, 16 fps
    waveform    float32 [n], 24 kHz, in -1..1
    face_mask   bool [F, H, W], the head's oval from skull to chin, without ears and loose hair
    aperture    float32 [F], 0 (closed) .. 1 (widest); equals `loudness_envelope(waveform, F)`
    mouth_box   float32 [F, 4], x0, y0, x1, y1 of the lips in pixels
    transcript, caption, language    what is said, what is seen, "en"
    voice, own_voice    who is heard (pitch in Hz), and the voice that belongs to the face
    """

    frames: np.ndarray
    waveform: np.ndarray
    face_mask: np.ndarray
    aperture: np.ndarray
    mouth_box: np.ndarray
    transcript: str
    caption: str
    language: str
    voice: Voice
    own_voice: Voice
    identity: Identity
    expression: str
    motion: str

    @property
    def pitch(self) -> float:
        """Median f0 of the voice heard, in Hz."""
        return self.voice.pitch


@dataclass(frozen=True)
class Theatre:
    """Clips by number. `size` is (width, height) in pixels, multiples of 16; `frames` is 4n + 1, from 17.

    Raises UserError for values it cannot play, and where espeak-ng is missing.
    """

    seed: int = 0
    split: str = "train"
    frames: int = 33
    size: tuple[int, int] = (128, 128)

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(f"split is {self.split!r}, expected one of {SPLITS}")
        if self.frames < 17 or self.frames % 4 != 1:
            raise UserError(f"the theatre got {self.frames} frames, expected 4n + 1 and at least 17")
        if min(self.size) < 64 or any(side % 16 for side in self.size):
            raise UserError(f"the theatre got size {self.size}, expected multiples of 16 from 64 pixels up")

    def about(self) -> dict:
        """What its clips are, JSON-ready, for `training.data.prepare`."""
        return {"theatre": [self.seed, self.split], "frames": self.frames, "size": list(self.size)}

    @property
    def _held_out(self) -> bool:
        return self.split == "held-out"

    def _rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), index, purpose])

    def identity(self, index: int) -> Identity:
        """Who plays in clip `index`."""
        return _cast(self._rng(index, 0), self._held_out)

    def voice(self, index: int) -> Voice:
        """The voice that belongs to the face of clip `index`."""
        return identity_voice(self.identity(index))

    def other_voice(self, index: int, ratio: float = 1.3) -> Voice:
        """A voice of someone else whose pitch differs from the face's own by `ratio` or more."""
        own, rng = self.voice(index), self._rng(index, 1)
        while True:
            voice = identity_voice(_cast(rng, self._held_out))
            if max(voice.pitch / own.pitch, own.pitch / voice.pitch) >= ratio:
                return voice

    def reference(self, index: int, voice: Voice | None = None, take: int = 0) -> Recording:
        """Another recording of the speaker of clip `index`, or of `voice`: other words, same length."""
        rng = self._rng(index, 100 + take)
        return recording(rng, voice or self.voice(index), self.frames / FPS, self._held_out)

    def speech(self, index: int, voice: Voice | None = None) -> Recording:
        """The sound of `clip(index, voice)`, without drawing it."""
        seconds = self.frames / FPS
        own = recording(self._rng(index, 2), self.voice(index), seconds, self._held_out)
        if voice is None:
            return own
        return recording(self._rng(index, 2), voice, seconds, self._held_out, own.transcript)

    def caption(self, index: int) -> str:
        """The caption of `clip(index)`, without drawing it."""
        return _caption(self.identity(index), *_setting(self._rng(index, 3)))

    def clip(self, index: int, voice: Voice | None = None) -> Clip:
        """Clip `index`; with `voice`, the same person says the same sentence with that voice."""
        identity = self.identity(index)
        speech = self.speech(index, voice)
        aperture = loudness_envelope(speech.waveform, self.frames)
        rng = self._rng(index, 3)
        expression, motion, place, colour = _setting(rng)
        play = _perform(rng, motion, expression, aperture, _spread(speech.waveform, self.frames))
        frames, mask, box = self._draw(rng, identity, play, place, colour)
        return Clip(
            frames=frames,
            waveform=speech.waveform,
            face_mask=mask,
            aperture=aperture,
            mouth_box=box,
            transcript=speech.transcript,
            caption=_caption(identity, expression, motion, place, colour),
            language="en",
            voice=speech.voice,
            own_voice=identity_voice(identity),
            identity=identity,
            expression=expression,
            motion=motion,
        )

    def _draw(self, rng, identity: Identity, play: Performance, place: str, colour: str):
        width, height = self.size
        large = (height * SUPERSAMPLING, width * SUPERSAMPLING)
        scene = Scene(rng, place, colour, *large, self.frames)
        frames = np.empty((self.frames, height, width, 3), np.uint8)
        masks = np.empty((self.frames, height, width), bool)
        boxes = np.empty((self.frames, 4), np.float32)
        for f in range(self.frames):
            canvas = scene.frame(f)
            outline, mouth = draw_face(canvas, identity, play, f)
            frames[f] = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
            stencil = np.zeros((height, width), np.uint8)
            cv2.fillPoly(
                stencil, [np.round((outline / SUPERSAMPLING - 0.5) * 16).astype(np.int32)], 1, shift=4
            )
            masks[f] = stencil > 0
            boxes[f] = np.concatenate([mouth.min(0), mouth.max(0)]) / SUPERSAMPLING
        return frames, masks, boxes


def _cast(rng: np.random.Generator, is_held_out: bool) -> Identity:
    """A person whose named traits hash into the wanted split."""
    while True:
        identity = _draw_traits(rng)
        named = " ".join(str(v) for v in asdict(identity).values() if not isinstance(v, float))
        if held_out(named) == is_held_out:
            return identity


def _draw_traits(rng: np.random.Generator) -> Identity:
    def pick(options, weights=None) -> str:
        return str(rng.choice(list(options), p=weights))

    person = pick(("man", "woman", "boy", "girl"), (0.33, 0.33, 0.17, 0.17))
    child, man = person in ("boy", "girl"), person == "man"
    age = "child" if child else pick(("young", "middle-aged", "old"))
    tones = (0.25, 0.25, 0.25, 0.25, 0.0)
    hair = "grey" if age == "old" else pick(HAIRS, tones)
    styles = {
        "man": ("short", "curly", "bald", "long"),
        "woman": ("long", "curly", "bob", "bun"),
        "boy": ("short", "curly"),
        "girl": ("long", "bob", "bun", "curly"),
    }
    return Identity(
        person=person,
        age=age,
        skin=pick(SKINS),
        hair=hair,
        style=pick(styles[person]),
        fringe=int(rng.integers(3)),
        eyes=pick(IRISES),
        clothes=pick(CLOTHES),
        width=float(rng.uniform(-1, 1)),
        jaw=float(rng.uniform(-1, 1) + (0.4 if man else -0.4)),
        nose=float(rng.uniform(-1, 1)),
        brows=float(rng.uniform(-1, 1) + (0.5 if man else 0)),
        ears=float(rng.uniform(-1, 1)),
        glasses=pick(("none", "round", "square"), (0.66, 0.17, 0.17)),
        hat=pick(("none", "cap", "beanie", "straw hat"), (0.7, 0.1, 0.1, 0.1)),
        hat_colour=pick(CLOTHES),
        earrings=person in ("woman", "girl") and bool(rng.random() < 0.4),
        beard=pick(("none", "beard", "moustache"), (0.5, 0.3, 0.2)) if man else "none",
    )


# espeak-ng variant, pitch in Hz of a face of middle width, formants.
_VOICES = {
    ("man", "young"): ("adam", 130, 1.0),
    ("man", "middle-aged"): ("edward", 116, 1.0),
    ("man", "old"): ("edward", 106, 0.95),
    ("woman", "young"): ("f2", 214, 1.0),
    ("woman", "middle-aged"): ("f5", 194, 1.0),
    ("woman", "old"): ("f2", 176, 0.95),
    ("boy", "child"): ("f2", 252, 1.05),
    ("girl", "child"): ("f5", 278, 1.05),
}


def identity_voice(identity: Identity) -> Voice:
    """The voice a face has: pitch from sex, age and the face's width, formants from sex and age.

    A wide face speaks up to 2^0.25 lower, a narrow one as much higher.
    """
    variant, pitch, formants = _VOICES[identity.person, identity.age]
    return Voice(variant, pitch * 2 ** (-0.25 * identity.width), formants)


def _setting(rng: np.random.Generator) -> tuple[str, str, str, str]:
    """Expression, motion, place and its colour."""
    expression = EXPRESSIONS[rng.integers(len(EXPRESSIONS))]
    motion = list(MOTIONS)[rng.integers(len(MOTIONS))]
    place = PLACES[rng.integers(len(PLACES))] if rng.random() < 0.6 else "wall"
    return expression, motion, place, list(WALLS)[rng.integers(len(WALLS))]


def _caption(identity: Identity, expression: str, motion: str, place: str, colour: str) -> str:
    age = "" if identity.age == "child" else f"{identity.age} "
    article = "an" if age.startswith("old") else "a"
    looks = {
        "short": f"short {identity.hair} hair",
        "long": f"long {identity.hair} hair",
        "curly": f"curly {identity.hair} hair",
        "bob": f"straight {identity.hair} hair",
        "bun": f"{identity.hair} hair in a bun",
        "bald": "a bald head",
    }[identity.style]
    extras = [looks]
    if identity.beard != "none":
        extras.append(f"a {identity.beard}")
    if identity.glasses != "none":
        extras.append("glasses")
    if identity.earrings:
        extras.append("earrings")
    if identity.hat != "none":
        extras.append(f"a {identity.hat}")
    worn = extras[0] if len(extras) == 1 else ", ".join(extras[:-1]) + " and " + extras[-1]
    mood = "with a neutral face" if expression == "neutral" else f"looking {expression}"
    where = _PLACE_WORDS[place].format(colour)
    return f"{article} {age}{identity.person} with {worn} {MOTIONS[motion]} while speaking, {mood}, {where}"


def _spread(waveform: np.ndarray, frames: int) -> np.ndarray:
    """Lips rounded (-1) to wide (1) by how bright the sound of each frame is: [F]."""
    hop = SAMPLE_RATE // FPS
    power = np.abs(np.fft.rfft(waveform.reshape(frames, hop) * np.hanning(hop))) ** 2
    bright = np.sqrt(power[:, 75:250].sum(1) / (power[:, 12:250].sum(1) + 1e-3))  # 1.2-4 kHz in 0.2-4 kHz
    return gaussian_filter1d(np.clip(2.5 * bright - 1, -1, 1), 0.7)


def _perform(rng, motion: str, expression: str, aperture: np.ndarray, spread: np.ndarray) -> Performance:
    frames = len(aperture)
    t = np.arange(frames) / FPS

    def wave(low: float, high: float) -> np.ndarray:
        return np.sin(2 * np.pi * (rng.uniform(low, high) * t + rng.random()))

    def drift(amount: float) -> np.ndarray:
        return amount * (wave(0.1, 0.5) + 0.4 * wave(0.5, 0.9))

    quiet = 0.4 if motion == "still" else 1.0
    x, y = rng.uniform(-0.06, 0.06) + quiet * drift(0.015), 0.025 + quiet * drift(0.01)
    yaw, roll = rng.uniform(-0.12, 0.12) + quiet * drift(0.05), quiet * drift(0.025)
    nod = 0.03 + quiet * drift(0.03)
    scale = _HEAD * rng.uniform(0.92, 1.08) * (1 + quiet * drift(0.015))
    if motion == "nodding":
        nod = nod + 0.2 * wave(1.1, 1.9)
    elif motion == "swaying":
        swing = wave(0.5, 0.9)
        x, roll = x + 0.05 * swing, roll + 0.13 * swing
    elif motion == "looking around":
        turn = wave(0.4, 0.8)
        yaw, nod = yaw + 0.32 * turn, nod + 0.06 * wave(0.3, 0.6)
    elif motion == "tilting":
        roll = roll + 0.2 * wave(0.35, 0.7)
    blink = np.zeros(frames)
    at = rng.uniform(0, 2.0)
    while at < frames / FPS:
        blink = np.maximum(blink, np.clip(1.4 - np.abs(t - at) / 0.075, 0, 1))
        at += rng.uniform(1.2, 3.5)
    return Performance(x, y, scale, yaw, nod, roll, aperture, spread, blink, expression)


def measure_aperture(frames: np.ndarray, mouth_box: np.ndarray | None = None) -> np.ndarray:
    """How far the mouth is open in each frame of any clip of the theatre's style, generated ones too.

    `frames` is uint8 [F, H, W, 3]; `mouth_box` [F, 4] is optional, the mouth is found by its colour: its
    inside alone is dark and red at once. Returns float32 [F], the height of the opening in units of the
    widest mouth of a head of average size: about 0 (closed) to 1.
    """
    side = min(frames.shape[1:3])
    red, green, blue = np.moveaxis(frames.astype(np.float32), 3, 0)
    redness = red - np.maximum(green, blue)
    if mouth_box is None:
        certain = np.clip((66 - green) / 58, 0, 1) * np.clip((redness - 22) / 20, 0, 1)
        mouth_box = _find_mouth(certain, side)
    # Near the mouth, nearly linear in how much of a pixel is inside it: green is 8 there, 85 or more in lips.
    inside = np.clip((85 - green) / 77, 0, 1) * np.clip((redness - 30) / 30, 0, 1)
    opening = np.zeros(len(frames), np.float32)
    for f, (x0, y0, x1, y1) in enumerate(mouth_box):
        rows = slice(max(0, int(y0)), int(np.ceil(y1)))
        columns = slice(max(0, int(x0)), int(np.ceil(x1)))
        tallest = np.sort(inside[f, rows, columns].sum(0))[-max(1, round(0.08 * side)) :]
        opening[f] = tallest.mean()
    return opening / (_VISIBLE * OPENING * _HEAD * side)


def shows_puppet(frames: np.ndarray) -> bool:
    """Whether an open mouth as the theatre draws it is seen in any frame of uint8 [F, H, W, 3].

    Without one `measure_aperture` means nothing. It goes by the mouth's colour and size, so a small thing of
    the same dark purple passes too.
    """
    red, green, blue = np.moveaxis(frames.astype(np.float32), 3, 0)
    cavity = (red > 70) & (red < 160) & (green < 0.35 * red) & (green < blue) & (blue < 0.6 * red)
    window = round(0.16 * min(frames.shape[1:3]))  # as wide as a mouth
    size = (0, window, window)
    filled = uniform_filter(cavity.astype(np.float32), size).max()  # pyright: ignore[reportArgumentType]
    return bool(0.1 < filled < 0.6)


def _find_mouth(inside: np.ndarray, side: int) -> np.ndarray:
    """Boxes [F, 4] around the most mouth-like spot of each frame, held near the clip's own such spot."""
    window = round(0.16 * side)
    crowd = uniform_filter(inside, (0, window, window))  # pyright: ignore[reportArgumentType]
    row, column = np.unravel_index(crowd.mean(0).argmax(), crowd.shape[1:])
    reach = round(0.16 * side)
    top, left = max(0, row - reach), max(0, column - reach)
    near = crowd[:, top : row + reach + 1, left : column + reach + 1]
    flat = near.reshape(len(near), -1)
    best = np.stack(np.unravel_index(flat.argmax(1), near.shape[1:]), 1) + np.array([top, left])
    best[flat.max(1) < 0.02] = (row, column)
    best = median_filter(best, (3, 1))
    half = 0.16 * side
    return np.concatenate([best[:, ::-1] - half, best[:, ::-1] + half], 1)
