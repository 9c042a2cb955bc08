"""How the theatre draws: a puppet of smooth polygons on a rounded head, before a scene with moving things.

Head units: x right, y down, the skull's top at (0, -1), the chin at (0, 1); a pixel canvas is three
times the picture and is averaged down. Colours are RGB. Only the inside of the mouth is dark and red
at once (`CAVITY`), so that `theatre.measure_aperture` can find it.
"""

from dataclasses import dataclass

import cv2
import numpy as np

CAVITY = (118, 8, 36)
SUPERSAMPLING = 3
MOUTH_Y = 0.54
OPENING = 0.4  # of the widest mouth, head units

SKINS = {
    "pale": (255, 226, 203),
    "light": (243, 200, 166),
    "tan": (222, 170, 126),
    "brown": (172, 120, 84),
    "dark": (126, 86, 62),
}
HAIRS = {
    "black": (48, 44, 52),
    "brown": (112, 78, 54),
    "blond": (236, 200, 112),
    "red": (204, 100, 52),
    "grey": (178, 178, 184),
}
CLOTHES = {
    "blue": (74, 118, 190),
    "green": (86, 158, 104),
    "yellow": (240, 200, 84),
    "white": (240, 238, 232),
    "purple": (140, 104, 180),
    "orange": (238, 146, 72),
}
WALLS = {
    "blue": (142, 184, 222),
    "green": (160, 204, 160),
    "yellow": (246, 224, 150),
    "pink": (244, 192, 204),
    "grey": (196, 198, 204),
}
IRISES = {"brown": (112, 76, 50), "blue": (72, 128, 196), "green": (82, 150, 100)}
PLACES = ("wall", "forest", "city", "sea", "bookshelf", "night sky")
EXPRESSIONS = ("neutral", "happy", "sad", "surprised", "angry")

# Per expression: brow height, inner brow, corner lift, eye opening, mouth width.
_FACES = {
    "neutral": (0.0, 0.0, 0.01, 1.0, 1.0),
    "happy": (0.03, 0.0, 0.12, 0.85, 1.14),
    "sad": (0.02, 0.12, -0.1, 0.8, 0.95),
    "surprised": (0.15, 0.02, 0.0, 1.3, 0.88),
    "angry": (-0.05, -0.13, -0.06, 0.78, 1.0),
}
_T = np.linspace(-1, 1, 25)
_ANGLES = np.linspace(0, 2 * np.pi, 32, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)


@dataclass(frozen=True)
class Identity:
    """Who is on stage; every field is visible. `width` and `jaw` are in -1..1, the rest named."""

    person: str  # man, woman, boy, girl
    age: str  # child, young, middle-aged, old
    skin: str
    hair: str
    style: str  # short, long, curly, bob, bun, bald
    fringe: int
    eyes: str
    clothes: str
    width: float
    jaw: float
    nose: float
    brows: float
    ears: float
    glasses: str  # none, round, square
    hat: str  # none, cap, beanie, straw hat
    hat_colour: str
    earrings: bool
    beard: str  # none, beard, moustache


@dataclass(frozen=True)
class Performance:
    """What the head does in each frame, arrays [F]: position and scale in shares of the picture's shorter
    side, angles in radians, `aperture`, `spread` (lips from rounded -1 to wide 1) and `blink` in 0..1."""

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    yaw: np.ndarray
    nod: np.ndarray
    roll: np.ndarray
    aperture: np.ndarray
    spread: np.ndarray
    blink: np.ndarray
    expression: str


def _shade(colour, factor: float) -> tuple[int, ...]:
    return tuple(int(min(255, c * factor)) for c in colour)


def _smooth(points, steps: int = 6) -> np.ndarray:
    """Closed Catmull-Rom curve through points [n, 2]: [n * steps, 2]."""
    p = np.asarray(points, np.float64)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (np.roll(p, k, 0)[:, None] for k in (1, 0, -1, -2))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


def _oval(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    return _CIRCLE * (rx, ry) + (x, y)


def _mirror(right) -> list:
    """The outline of a symmetric shape from its right half, top to bottom on the axis."""
    return [*right, *[(-x, y) for x, y in reversed(right[1:-1])]]


def _fill(image: np.ndarray, points: np.ndarray, colour, alpha: float = 1.0) -> None:
    fixed = np.round(points * 16).astype(np.int32)
    if alpha == 1.0:
        cv2.fillPoly(image, [fixed], colour, cv2.LINE_AA, 4)
        return
    height, width = image.shape[:2]
    x0, y0 = np.maximum(np.floor(points.min(0)).astype(int) - 2, 0)
    x1, y1 = np.minimum(np.ceil(points.max(0)).astype(int) + 3, (width, height))
    if x0 >= x1 or y0 >= y1:
        return
    region = image[y0:y1, x0:x1]
    painted = region.copy()
    cv2.fillPoly(painted, [fixed - np.array([x0, y0], np.int32) * 16], colour, cv2.LINE_AA, 4)
    cv2.addWeighted(painted, alpha, region, 1 - alpha, 0, region)


class Head:
    """One frame's pose: puts points of the head, which is a rounded solid, on the canvas."""

    def __init__(self, image: np.ndarray, centre, unit: float, yaw: float, nod: float, roll: float):
        self.image, self.centre, self.unit = image, np.asarray(centre), unit
        self.yaw, self.nod, self.roll = yaw, nod, roll

    def place(self, points, depth: float | None = None, relief: float = 0.0) -> np.ndarray:
        """Canvas pixels of points [n, 2]: on the face's rounded front, or at a fixed depth."""
        p = np.asarray(points, np.float64)
        x, y = p[:, 0], p[:, 1]
        front = 0.8 * np.sqrt(np.clip(1 - 0.8 * x**2 - 0.5 * y**2, 0.04, 1)) + relief
        z = front if depth is None else np.full(len(p), depth)
        x, z = x * np.cos(self.yaw) + z * np.sin(self.yaw), z * np.cos(self.yaw) - x * np.sin(self.yaw)
        y = y * np.cos(self.nod) + z * np.sin(self.nod)
        cos, sin = np.cos(self.roll), np.sin(self.roll)
        y = y - 1.0  # the head tilts about the neck
        turned = np.stack([x * cos - y * sin, x * sin + y * cos + 1.0], 1)
        return self.centre + turned * self.unit

    def fill(self, points, colour, depth=None, relief=0.0, alpha=1.0) -> None:
        _fill(self.image, self.place(points, depth, relief), colour, alpha)

    def stroke(self, points, colour, width: float, depth=None, relief=0.0, closed=False) -> None:
        fixed = np.round(self.place(points, depth, relief) * 16).astype(np.int32)
        thickness = max(1, round(width * self.unit))
        cv2.polylines(self.image, [fixed], closed, colour, thickness, cv2.LINE_AA, 4)


def face_outline(identity: Identity, aperture: float) -> np.ndarray:
    """The outline of the face in head units, the jaw lowered by the mouth's opening: [n, 2]."""
    width = 0.78 + 0.1 * identity.width
    jaw = 0.8 + 0.1 * identity.jaw
    if identity.age == "child":
        width, jaw = width + 0.04, jaw + 0.05
    drop = 0.1 * aperture
    half = [
        (0, -1.0),
        (0.6 * width, -0.86),
        (0.96 * width, -0.42),
        (width, 0.08),
        (jaw * width, 0.6 + 0.5 * drop),
        (0.46 * jaw * width, 0.93 + drop),
        (0, 1.01 + drop),
    ]
    return _smooth(_mirror(half))


def draw_face(
    image: np.ndarray, identity: Identity, play: Performance, f: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw frame f on the supersampled canvas [SH, SW, 3].

    Returns the face's outline and the mouth's opening box corners, both in canvas pixels [n, 2].
    """
    side = min(image.shape[:2])
    centre = (image.shape[1] / 2 + play.x[f] * side, image.shape[0] / 2 + play.y[f] * side)
    head = Head(image, centre, play.scale[f] * side, play.yaw[f], play.nod[f], play.roll[f])
    skin, hair = SKINS[identity.skin], HAIRS[identity.hair]
    face = face_outline(identity, play.aperture[f])
    _draw_back_hair(head, identity, hair)
    _draw_body(head, identity, skin)
    width = np.abs(face[:, 0]).max()
    for side_x in (-1, 1):
        head.fill(_oval(side_x * width, 0.08, 0.12, 0.17 + 0.03 * identity.ears), skin, 0.0)
        head.fill(_oval(side_x * width * 1.01, 0.09, 0.055, 0.09), _shade(skin, 0.84), 0.0)
        if identity.earrings:
            head.fill(_oval(side_x * width * 1.06, 0.32, 0.06, 0.06), (250, 214, 90), 0.0)
    outline = head.place(face, 0.1)
    _fill(image, outline, skin)
    head.fill(
        _smooth([(-0.95 * width, 0.1), (-0.5, 0.84), (0, 0.98), (-0.3, 0.7), (-0.72 * width, 0.2)]),
        _shade(skin, 0.88),
        0.15,
        alpha=0.5,
    )
    _draw_features(head, identity, play, f, skin, hair)
    corners = _draw_mouth(head, identity, play, f, skin)
    _draw_front_hair(head, identity, hair, width)
    _draw_hat(head, identity, width)
    return outline, corners


def _draw_body(head: Head, identity: Identity, skin) -> None:
    """Neck and shoulders: they follow the head's place, hardly its turns."""
    body = Head(head.image, head.centre, head.unit, 0.3 * head.yaw, 0, 0.15 * head.roll)
    cloth = CLOTHES[identity.clothes]
    broad = {"man": 1.5, "woman": 1.25, "boy": 1.1, "girl": 1.05}[identity.person]
    shoulders = [(-broad - 0.1, 3), (-broad, 1.75), (-0.7 * broad, 1.42), (-0.3, 1.26), (0.3, 1.26)]
    shoulders += [(0.7 * broad, 1.42), (broad, 1.75), (broad + 0.1, 3)]
    body.fill(_smooth(shoulders), cloth, 0.0)
    neck = 0.34 if identity.person == "man" else 0.27
    body.fill(
        [(-neck, 0.5), (neck, 0.5), (neck + 0.05, 1.3), (0, 1.46), (-neck - 0.05, 1.3)],
        _shade(skin, 0.85),
        0.0,
    )
    body.stroke([(-neck - 0.1, 1.26), (0, 1.52), (neck + 0.1, 1.26)], _shade(cloth, 0.8), 0.09, 0.0)


def _draw_back_hair(head: Head, identity: Identity, hair) -> None:
    dark = _shade(hair, 0.86)
    w = 0.88 + 0.1 * identity.width
    if identity.style == "long":
        half = [
            (0, -1.16),
            (0.75 * w, -0.95),
            (1.16 * w, -0.3),
            (1.2 * w, 0.5),
            (1.3 * w, 1.3),
            (0.7, 1.55),
            (0, 1.4),
        ]
        head.fill(_smooth(_mirror(half)), dark, -0.3)
    elif identity.style == "bob":
        half = [
            (0, -1.16),
            (0.8 * w, -0.92),
            (1.22 * w, -0.2),
            (1.3 * w, 0.5),
            (1.1 * w, 0.82),
            (0.5, 0.7),
            (0, 0.6),
        ]
        head.fill(_smooth(_mirror(half)), dark, -0.3)
    elif identity.style == "curly":
        for angle in np.linspace(-0.25, np.pi + 0.25, 11):
            head.fill(_oval(1.02 * w * np.cos(angle), -0.22 - 0.78 * np.sin(angle), 0.3, 0.3), dark, -0.2)
    elif identity.style == "bun":
        head.fill(_oval(0, -1.22, 0.36, 0.32), dark, -0.3)
        head.fill(_oval(0, -0.2, 0.96 * w, 0.9), dark, -0.2)
    elif identity.style == "short":
        head.fill(_oval(0, -0.32, 1.0 * w, 0.8), dark, -0.1)


def _draw_front_hair(head: Head, identity: Identity, hair, width: float) -> None:
    if identity.style == "bald":
        return
    w = width
    edge = [
        (-1.05 * w, 0.08),
        (-1.08 * w, -0.4),
        (-0.72 * w, -0.96),
        (0, -1.13),
        (0.72 * w, -0.96),
        (1.08 * w, -0.4),
        (1.05 * w, 0.08),
        (0.93 * w, -0.24),
    ]
    lines = [
        [(0.8 * w, -0.5), (0.25, -0.66), (-0.5 * w, -0.5), (-0.93 * w, -0.24)],
        [(0.7 * w, -0.45), (0.3, -0.48), (-0.3, -0.46), (-0.7 * w, -0.44), (-0.93 * w, -0.24)],
        [(0.62 * w, -0.56), (0.02, -0.8), (-0.62 * w, -0.56), (-0.93 * w, -0.24)],
    ]
    head.fill(_smooth([*edge, *lines[identity.fringe]]), hair, 0.25)
    head.stroke([(-0.5 * w, -0.86), (-0.15, -0.97), (0.2, -0.95)], _shade(hair, 1.25), 0.05, 0.3)
    if identity.style == "curly":
        for x in (-0.7, -0.35, 0.0, 0.35, 0.7):
            head.fill(_oval(x * w, -0.78 + 0.28 * x * x, 0.24, 0.22), hair, 0.3)


def _draw_hat(head: Head, identity: Identity, width: float) -> None:
    colour = CLOTHES[identity.hat_colour]
    w = width
    if identity.hat == "beanie":
        half = [(0, -1.36), (0.6 * w, -1.22), (1.06 * w, -0.8), (1.12 * w, -0.52), (0.6, -0.54), (0, -0.55)]
        head.fill(_smooth(_mirror(half)), colour, 0.1)
        head.stroke([(-1.1 * w, -0.56), (0, -0.62), (1.1 * w, -0.56)], _shade(colour, 0.82), 0.2, 0.2)
        head.fill(_oval(0, -1.36, 0.17, 0.17), _shade(colour, 1.2), 0.1)
    elif identity.hat == "cap":
        half = [(0, -1.24), (0.6 * w, -1.14), (1.06 * w, -0.78), (1.06 * w, -0.52), (0.5, -0.56), (0, -0.58)]
        head.fill(_smooth(_mirror(half)), colour, 0.1)
        head.fill(
            _smooth(
                [
                    (-0.9 * w, -0.56),
                    (0, -0.68),
                    (0.9 * w, -0.56),
                    (0.75 * w, -0.42),
                    (0, -0.5),
                    (-0.75 * w, -0.42),
                ]
            ),
            _shade(colour, 0.78),
            0.5,
        )
    elif identity.hat == "straw hat":
        straw = (232, 204, 140)
        head.fill(_oval(0, -0.66, 1.5 * w, 0.2), _shade(straw, 0.9), 0.2)
        half = [(0, -1.3), (0.5 * w, -1.26), (0.72 * w, -1.0), (0.8 * w, -0.68), (0, -0.62)]
        head.fill(_smooth(_mirror(half)), straw, 0.2)
        head.stroke([(-0.78 * w, -0.78), (0, -0.74), (0.78 * w, -0.78)], colour, 0.13, 0.25)


def _draw_features(head: Head, identity: Identity, play: Performance, f: int, skin, hair) -> None:
    raised, inner, _, wide, _ = _FACES[play.expression]
    child = identity.age == "child"
    for s in (-1, 1):
        head.fill(_oval(s * 0.48, 0.34, 0.17, 0.12), (240, 120, 120), alpha=0.3 if child else 0.16)
    if identity.age in ("middle-aged", "old"):
        for s in (-1, 1):
            head.stroke([(s * 0.2, 0.26), (s * 0.38, 0.4), (s * 0.42, 0.54)], _shade(skin, 0.8), 0.03)
    if identity.age == "old":
        for s in (-1, 1):
            head.stroke([(s * 0.2, 0.1), (s * 0.32, 0.14), (s * 0.46, 0.09)], _shade(skin, 0.82), 0.025)
        head.stroke([(-0.3, -0.52), (0, -0.56), (0.3, -0.52)], _shade(skin, 0.84), 0.025)
    ry = (0.16 if child else 0.135) * wide * (1 - 0.92 * play.blink[f]) + 0.008
    rx = 0.185 if child else 0.165
    feminine = identity.person in ("woman", "girl")
    for s in (-1, 1):
        eye = _oval(s * 0.34, -0.07, rx, ry)
        head.fill(eye, (252, 252, 250))
        gaze = s * 0.34 + 0.12 * np.clip(play.yaw[f], -0.5, 0.5)
        size = min(0.105, ry)
        head.fill(_oval(gaze, -0.06, 0.105, size), IRISES[identity.eyes])
        head.fill(_oval(gaze, -0.06, 0.058, min(0.058, size)), (28, 26, 30))
        if play.blink[f] < 0.5:
            head.fill(_oval(gaze - 0.04, -0.1, 0.03, 0.03), (255, 255, 255))
        lid = eye[(_CIRCLE[:, 1] <= 0.01)]
        head.stroke(lid[np.argsort(lid[:, 0])], (58, 46, 46), 0.055 if feminine else 0.035)
        thick = 0.055 + 0.025 * identity.brows - (0.01 if feminine else 0)
        brow = _shade(hair, 0.7) if identity.hair != "grey" else (130, 128, 132)
        arc = [
            (0.17, -0.3 - inner),
            (0.25, -0.345 - 0.6 * inner),
            (0.36, -0.375),
            (0.47, -0.35),
            (0.54, -0.3),
        ]
        head.stroke([(s * x, y - raised) for x, y in arc], brow, thick)
    n = 0.09 + 0.03 * identity.nose
    head.fill(
        _smooth([(0.01, -0.02), (n + 0.02, 0.2), (n, 0.29), (0, 0.3), (0.02, 0.15)]),
        _shade(skin, 0.84),
        relief=0.1,
    )
    head.fill(_oval(0, 0.22, n, 0.07), _shade(skin, 1.05), relief=0.14)
    head.stroke([(-n, 0.26), (0, 0.3), (n, 0.26)], _shade(skin, 0.72), 0.025, relief=0.12)
    if identity.glasses != "none":
        frame = (60, 60, 84)
        for s in (-1, 1):
            box = [(-0.24, -0.18), (0.24, -0.18), (0.22, 0.17), (-0.22, 0.17)]
            rim = _oval(0, 0, 0.24, 0.22) if identity.glasses == "round" else np.array(box)
            head.stroke(np.add(rim, (s * 0.34, -0.06)), frame, 0.04, 0.8, closed=True)
            head.stroke([(s * 0.58, -0.1), (s * 0.82, -0.06)], frame, 0.04, 0.4)
        head.stroke([(-0.1, -0.08), (0, -0.11), (0.1, -0.08)], frame, 0.04, 0.85)


def _draw_mouth(head: Head, identity: Identity, play: Performance, f: int, skin) -> np.ndarray:
    _, _, lift, _, broad = _FACES[play.expression]
    aperture, spread = play.aperture[f], play.spread[f]
    half = 0.29 * broad * (1 + 0.16 * spread)
    opening = OPENING * aperture
    arch = np.sqrt(np.clip(1 - _T**2, 0, 1))
    base = MOUTH_Y + 0.4 * lift - lift * _T**2
    upper, lower = base - 0.22 * opening * arch, base + 0.78 * opening * arch
    x = half * _T
    hair = HAIRS[identity.hair]
    if identity.beard == "beard":
        ring = [(0.76, 0.2), (0.74, 0.62), (0.42, 1.0), (0, 1.12), (-0.42, 1.0), (-0.74, 0.62), (-0.76, 0.2)]
        ring += [(-0.52, 0.42), (-0.2, 0.34), (0, 0.37), (0.2, 0.34), (0.52, 0.42)]
        drop = np.array([(0, 0.1 * aperture * max(0.0, y)) for _, y in ring])
        head.fill(_smooth(np.array(ring) * (0.98 + 0.1 * identity.width, 1) + drop), _shade(hair, 0.92), 0.35)
    elif identity.beard == "moustache":
        head.fill(
            _smooth([(-0.36, 0.47), (-0.18, 0.36), (0, 0.38), (0.18, 0.36), (0.36, 0.47), (0, 0.46)]),
            hair,
            relief=0.05,
        )
    made_up = identity.person == "woman" and identity.age != "old"
    red = (212, 92, 104) if made_up else (206, 122, 116)
    lip = tuple(int(0.65 * r + 0.35 * s) for r, s in zip(red, skin))
    full = 0.075 if identity.person in ("woman", "girl") else 0.06
    bow = 1 - 0.35 * np.exp(-((_T / 0.16) ** 2))
    rim = np.stack([1.1 * x, upper - full * arch * bow], 1)
    chin = np.stack([1.1 * x, lower + 1.2 * full * arch], 1)
    head.fill(np.concatenate([rim, chin[::-1]]), lip, relief=0.05)
    inside = np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])
    head.stroke(np.stack([x, base], 1), _shade(lip, 0.72), 0.022, relief=0.05)
    head.fill(inside, CAVITY, relief=0.05)
    if aperture > 0.05:
        t = 0.74 * _T
        top = np.interp(t, _T, upper) + 0.03 * opening
        teeth = (
            np.stack([half * t, top], 1),
            np.stack([half * t, top + 0.2 * opening * np.sqrt(1 - 0.9 * _T**2)], 1),
        )
        head.fill(np.concatenate([teeth[0], teeth[1][::-1]]), (250, 248, 240), relief=0.05)
        bottom = np.interp(0.6 * _T, _T, lower) - 0.05 * opening
        tongue = np.stack([0.6 * x, bottom], 1), np.stack([0.6 * x, bottom - 0.2 * opening * arch], 1)
        head.fill(np.concatenate([tongue[0], tongue[1][::-1]]), (226, 108, 122), relief=0.05)
    return head.place(np.concatenate([rim, chin]), relief=0.05)


class Scene:
    """A place with clutter, and two or three things that move through it."""

    def __init__(
        self, rng: np.random.Generator, place: str, colour: str, height: int, width: int, frames: int
    ):
        self.backdrop = np.zeros((height, width, 3), np.uint8)
        self.unit = min(height, width)
        _BACKDROPS[place](self.backdrop, rng, WALLS[colour], self.unit)
        self.backdrop = cv2.GaussianBlur(self.backdrop, (0, 0), self.unit / 160)
        self.movers = [self._mover(rng, place, frames) for _ in range(rng.integers(2, 4))]

    def _mover(self, rng, place: str, frames: int):
        height, width = self.backdrop.shape[:2]
        start = rng.uniform((0, 0.05), (1, 0.7)) * (width, height)
        speed = rng.uniform(0.15, 0.5) * self.unit * rng.choice([-1, 1])
        times = np.arange(frames) / 16
        x = (start[0] + speed * times + 0.1 * width) % (1.2 * width) - 0.1 * width
        y = start[1] + 0.06 * self.unit * np.sin(2 * np.pi * (rng.uniform(0.3, 0.9) * times + rng.random()))
        kinds = {
            "wall": ("balloon", "ball"),
            "bookshelf": ("balloon", "ball"),
            "night sky": ("balloon", "star"),
        }
        kind = rng.choice(kinds.get(place, ("bird", "balloon")))
        names = list(CLOTHES)
        return (
            str(kind),
            np.stack([x, y], 1),
            CLOTHES[names[rng.integers(len(names))]],
            rng.uniform(0.05, 0.085),
        )

    def frame(self, f: int) -> np.ndarray:
        image = self.backdrop.copy()
        for kind, path, colour, size in self.movers:
            r, at = size * self.unit, path[f]
            if kind == "bird":
                flap = 0.8 * np.sin(2.2 * f)
                wings = np.array(
                    [(-1.2, -flap), (-0.5, -0.35), (0, 0.1), (0.5, -0.35), (1.2, -flap), (0, 0.4)]
                )
                _fill(image, _smooth(wings) * r + at, (70, 74, 96))
            elif kind == "star":
                spokes = np.where(np.arange(10) % 2, 0.42, 1.0) * r
                angles = np.arange(10) * np.pi / 5 + 0.1 * f
                _fill(
                    image,
                    np.stack([np.cos(angles), np.sin(angles)], 1) * spokes[:, None] + at,
                    (255, 236, 150),
                )
            else:
                if kind == "balloon":
                    string = np.round((at + np.array([(0, 1), (0.2, 2.6)]) * r) * 16).astype(np.int32)
                    cv2.polylines(image, [string], False, (120, 120, 124), 2, cv2.LINE_AA, 4)
                _fill(image, _oval(at[0], at[1], r, r * (1.2 if kind == "balloon" else 1)), colour)
                _fill(
                    image, _oval(at[0] - 0.35 * r, at[1] - 0.4 * r, 0.25 * r, 0.25 * r), (255, 255, 255), 0.7
                )
        return image


def _ramp(image: np.ndarray, top, bottom) -> None:
    t = np.linspace(0, 1, image.shape[0])[:, None, None]
    image[:] = np.round(np.array(top) * (1 - t) + np.array(bottom) * t)


def _rectangle(image, x0, y0, x1, y1, colour) -> None:
    _fill(image, np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]), colour)


def _wall(image, rng, colour, unit) -> None:
    height, width = image.shape[:2]
    _ramp(image, colour, _shade(colour, 0.9))
    if rng.random() < 0.5:
        step = unit * rng.uniform(0.07, 0.13)
        for x in np.arange(0, width, 2 * step):
            _rectangle(image, x, 0, x + step, height, _shade(colour, 0.94))
    for x in (rng.uniform(0.0, 0.14), rng.uniform(0.72, 0.86)):
        y, w, h = rng.uniform(0.04, 0.5), rng.uniform(0.14, 0.2), rng.uniform(0.14, 0.26)
        box = np.array([x * width, y * height, x * width + w * unit, y * height + h * unit])
        inner = box + np.array([1, 1, -1, -1]) * 0.02 * unit
        _rectangle(image, *box.tolist(), colour=(126, 100, 78))
        _rectangle(image, *inner.tolist(), colour=tuple(int(c) for c in rng.integers(140, 250, 3)))
        middle = (inner[:2] + inner[2:]) / 2
        _fill(
            image,
            _oval(middle[0], middle[1], 0.05 * unit, 0.05 * unit),
            tuple(int(c) for c in rng.integers(110, 230, 3)),
        )


def _forest(image, rng, _, unit) -> None:
    height, width = image.shape[:2]
    _ramp(image, (186, 222, 240), (150, 196, 130))
    for depth in range(2):
        for x in np.arange(rng.uniform(-0.1, 0.1), 1.1, 0.22):
            x, y = (
                (x + rng.uniform(-0.05, 0.05)) * width,
                (0.25 + 0.25 * depth + rng.uniform(-0.1, 0.1)) * height,
            )
            green = (int(70 + 40 * rng.random() - 20 * depth), int(150 - 30 * depth + 20 * rng.random()), 90)
            _rectangle(image, x - 0.025 * unit, y, x + 0.025 * unit, height, (122, 94, 70))
            r = rng.uniform(0.11, 0.17) * unit
            _fill(image, _oval(x, y, r, 1.2 * r), green)
            _fill(image, _oval(x - 0.3 * r, y - 0.4 * r, 0.5 * r, 0.5 * r), _shade(green, 1.1))
    _rectangle(image, 0, 0.88 * height, width, height, (110, 164, 92))


def _city(image, rng, _, unit) -> None:
    height, width = image.shape[:2]
    _ramp(image, (170, 206, 238), (240, 224, 206))
    x = -0.05 * width
    while x < width:
        w, top = rng.uniform(0.12, 0.24) * unit, rng.uniform(0.08, 0.55) * height
        tone = rng.integers(118, 200)
        _rectangle(image, x, top, x + w, height, (int(tone), int(tone), int(tone + 16)))
        for wy in np.arange(top + 0.03 * unit, height, 0.075 * unit):
            for wx in np.arange(x + 0.025 * unit, x + w - 0.035 * unit, 0.055 * unit):
                lit = (252, 232, 160) if rng.random() < 0.4 else (110, 130, 160)
                _rectangle(image, wx, wy, wx + 0.028 * unit, wy + 0.04 * unit, lit)
        x += w + rng.uniform(0, 0.03) * unit


def _sea(image, rng, _, unit) -> None:
    height, width = image.shape[:2]
    horizon = rng.uniform(0.42, 0.58) * height
    _ramp(image, (146, 200, 242), (226, 240, 248))
    _fill(
        image, _oval(rng.uniform(0.1, 0.9) * width, 0.14 * height, 0.08 * unit, 0.08 * unit), (255, 238, 160)
    )
    for _ in range(4):
        x, y = rng.uniform(0, 1) * width, rng.uniform(0.08, 0.35) * height
        for dx in (-0.07, 0, 0.07):
            _fill(
                image,
                _oval(x + dx * unit, y - abs(0.03 - abs(dx)) * unit, 0.07 * unit, 0.04 * unit),
                (250, 252, 255),
            )
    _rectangle(image, 0, horizon, width, height, (70, 144, 190))
    for y in np.arange(horizon + 0.05 * unit, 0.85 * height, 0.08 * unit):
        wave = np.stack([np.linspace(0, width, 40), y + 0.012 * unit * np.sin(np.linspace(0, 30, 40) + y)], 1)
        cv2.polylines(
            image, [np.round(wave * 16).astype(np.int32)], False, (150, 204, 228), 3, cv2.LINE_AA, 4
        )
    _rectangle(image, 0, 0.86 * height, width, height, (238, 216, 164))
    x = rng.choice([0.14, 0.84]) * width
    sail = np.array([(0, -0.16), (0.09, -0.02), (0, -0.02)]) * unit + (x, horizon)
    _fill(image, sail, (252, 250, 244))
    _fill(
        image,
        np.array([(-0.07, 0), (0.1, 0), (0.07, 0.035), (-0.04, 0.035)]) * unit + (x, horizon),
        (128, 98, 80),
    )


def _bookshelf(image, rng, _, unit) -> None:
    height, width = image.shape[:2]
    image[:] = (150, 116, 86)
    colours = [*CLOTHES.values(), *WALLS.values(), (96, 104, 130)]
    for y in np.arange(0, height, 0.24 * unit):
        _rectangle(image, 0, y, width, y + 0.22 * unit, (104, 82, 66))
        x = 0.0
        while x < width:
            w, h = rng.uniform(0.025, 0.055) * unit, rng.uniform(0.13, 0.2) * unit
            book = _shade(colours[rng.integers(len(colours))], 0.88)
            _rectangle(image, x, y + 0.22 * unit - h, x + w, y + 0.22 * unit, book)
            _rectangle(
                image, x, y + 0.22 * unit - 0.8 * h, x + w, y + 0.22 * unit - 0.72 * h, _shade(book, 1.15)
            )
            x += w + (rng.uniform(0.03, 0.1) * unit if rng.random() < 0.12 else 0.004 * unit)


def _night_sky(image, rng, _, unit) -> None:
    height, width = image.shape[:2]
    _ramp(image, (34, 40, 88), (104, 92, 150))
    for x, y, r in rng.random((50, 3)):
        _fill(
            image,
            _oval(x * width, y * 0.9 * height, (0.003 + 0.006 * r) * unit, (0.003 + 0.006 * r) * unit),
            (250, 246, 220),
        )
    moon = np.array([rng.choice([0.14, 0.86]) * width, 0.16 * height])
    _fill(image, _oval(moon[0], moon[1], 0.09 * unit, 0.09 * unit), (250, 242, 200))
    _fill(
        image, _oval(moon[0] + 0.02 * unit, moon[1] + 0.02 * unit, 0.02 * unit, 0.02 * unit), (226, 216, 170)
    )
    hills = np.stack(
        [np.linspace(0, width, 30), 0.82 * height + 0.05 * unit * np.sin(np.linspace(0, 7, 30) + moon[0])], 1
    )
    _fill(image, np.concatenate([hills, [(width, height), (0, height)]]), (48, 62, 84))


_BACKDROPS = {
    "wall": _wall,
    "forest": _forest,
    "city": _city,
    "sea": _sea,
    "bookshelf": _bookshelf,
    "night sky": _night_sky,
}
