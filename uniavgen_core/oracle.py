"""The model as docs/model.md writes it, slowly and plainly: one clip, one token, one head at a time.

Everything takes a state dict (docs/model.md section 2), works in the dtype of what it is given and shares no
code with the rest of the package. Clips are single: video [48, T, H, W], audio [L, 80].
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

State = dict[str, Tensor]


def part(state: State, prefix: str) -> State:
    """The entries under `prefix.`, without it."""
    return {k[len(prefix) + 1 :]: v for k, v in state.items() if k.startswith(prefix + ".")}


# layers


def linear(w: State, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps) * weight


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def mlp(w: State, x: Tensor, activation) -> Tensor:
    return linear(w, "2", activation(linear(w, "0", x)))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [..., n, c], k and v [..., m, c]."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return torch.softmax(scores, -1) @ v


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[..., n, heads * c] -> [..., heads, n, c]."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def joined(x: Tensor) -> Tensor:
    return x.transpose(-2, -3).flatten(-2)


# rotary positions


def table(pairs: int) -> list[float]:
    """10000^(-2i/n) with n = twice the number of pairs."""
    return [10000.0 ** (-2 * i / (2 * pairs)) for i in range(pairs)]


def sequence_angles(length: int, head_dim: int, start: int = 0) -> Tensor:
    """[length, head_dim / 2] in float64."""
    return torch.tensor(
        [[(start + p) * f for f in table(head_dim // 2)] for p in range(length)], dtype=torch.float64
    ).reshape(length, head_dim // 2)


def grid_angles(frame: int, height: int, width: int, head_dim: int) -> Tensor:
    """[height * width, head_dim / 2]: the tokens of one frame, row after row."""
    c = head_dim // 2
    side = c // 3
    rows = []
    for row in range(height):
        for column in range(width):
            rows.append(
                [frame * f for f in table(c - 2 * side)]
                + [row * f for f in table(side)]
                + [column * f for f in table(side)]
            )
    return torch.tensor(rows, dtype=torch.float64)


def window_angles(places: int, head_dim: int) -> Tensor:
    """[places, head_dim / 2]: the audio table on the frame group's frequencies, nothing on the others."""
    c = head_dim // 2
    frame = c - 2 * (c // 3)
    angles = sequence_angles(places, head_dim)
    angles[:, frame:] = 0
    return angles


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Interleaved pairs (x0, x1) turned by their angle; x [..., n, c], angles [n, c / 2]."""
    cos, sin = torch.cos(angles).to(x.dtype), torch.sin(angles).to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


# frame alignment


def released_windows(frames: int, mels: int) -> list[list[int]]:
    """docs/model.md section 4, A2V: for each latent frame the audio tokens it looks at."""
    r = mels / (4 * (frames - 1) + 1)
    before, after = math.floor(2 * r), math.ceil(2 * r)
    spans = [(-before, 1 + after)]
    for i in range(1, frames):
        s = 4 * (i - 1) + 1
        e = s + 4
        spans.append((math.floor(s * r) - before, math.ceil(e * r) + after))
    longest = max(e - s for s, e in (spans[1:] or spans))
    windows = []
    for s, e in spans:
        missing = longest - (e - s)
        if s < 0:
            s -= missing
        elif e >= mels:
            e += missing
        else:
            s -= missing // 2
            e += missing - missing // 2
        windows.append([min(max(n, 0), mels - 1) for n in range(s, e)])
    return windows


def released_pairs(frames: int, mels: int) -> list[tuple[int, int, float, float]]:
    """docs/model.md section 4, V2A: for each mel frame two latent frames and their weights."""
    video_frames = 4 * (frames - 1) + 1
    r = mels / video_frames

    def latent(f: int) -> int:
        return 0 if f == 0 else (f - 1) // 4 + 1

    pairs = []
    for j in range(mels):
        p = j / r
        lo = min(math.floor(p), video_frames - 1)
        hi = min(lo + 1, video_frames - 1)
        pairs.append((latent(lo), latent(hi), 1 - (p - lo), 1 - (hi - p)))
    return pairs


def paper_windows(frames: int, mels: int, reach: int) -> list[list[int]]:
    """docs/model.md section 5, A2V: C_i = [H^a_{i-w}, ..., H^a_{i+w}], edges repeated, L padded."""
    k = math.ceil(mels / frames)
    blocks = [[min(i * k + n, mels - 1) for n in range(k)] for i in range(frames)]
    windows = []
    for i in range(frames):
        window = []
        for neighbour in range(i - reach, i + reach + 1):
            window += blocks[min(max(neighbour, 0), frames - 1)]
        windows.append(window)
    return windows


def paper_pairs(frames: int, mels: int) -> list[tuple[int, int, float, float]]:
    """docs/model.md section 5, V2A: C_j = (1 - alpha) H_i + alpha H_{i+1}."""
    k = math.ceil(mels / frames)
    pairs = []
    for j in range(mels):
        i, alpha = j // k, (j % k) / k
        pairs.append((i, min(i + 1, frames - 1), 1 - alpha, alpha))
    return pairs


def windows(config, frames: int, mels: int) -> list[list[int]]:
    if config.variant == "released":
        return released_windows(frames, mels)
    return paper_windows(frames, mels, config.window)


def pairs(config, frames: int, mels: int) -> list[tuple[int, int, float, float]]:
    return released_pairs(frames, mels) if config.variant == "released" else paper_pairs(frames, mels)


# interaction


def a2v(w: State, config, video: Tensor, audio: Tensor) -> Tensor:
    """What the audio [L, A] says to the video [T, h, w, D], before the face mask: [T, h, w, D].

    Released: the attention (the mask comes before `o`); paper: H + the attention.
    """
    frames, height, width, _ = video.shape
    c = config.head_dim
    out = torch.empty_like(video)
    for i, window in enumerate(windows(config, frames, audio.shape[0])):
        context = torch.stack([audio[n] for n in window])  # [W, A]
        q = rms_norm(linear(w, "q", video[i].flatten(0, 1)), w["norm_q.weight"], config.eps)
        k = rms_norm(linear(w, "k", context), w["norm_k.weight"], config.eps)
        v = linear(w, "v", context)
        q, k, v = (heads_of(x, config.video_heads) for x in (q, k, v))
        q = rotate(q, grid_angles(0, height, width, c))
        k = rotate(k, window_angles(len(window), c))
        out[i] = joined(softmax_attention(q, k, v)).unflatten(0, (height, width))
    return video + out if config.variant == "paper" else out


def v2a_contexts(config, video: Tensor, mels: int) -> Tensor:
    """[T, h, w, D] (already masked) -> [L, h * w, D]."""
    frames = video.shape[0]
    context = torch.empty(mels, video.shape[1] * video.shape[2], video.shape[3], dtype=video.dtype)
    for j, (lo, hi, w_lo, w_hi) in enumerate(pairs(config, frames, mels)):
        context[j] = (w_lo * video[lo] + w_hi * video[hi]).flatten(0, 1)
    return context


def v2a(w: State, config, video: Tensor, audio: Tensor) -> Tensor:
    """The update [L, A] of the audio [L, A] from the masked video [T, h, w, D], after `o`."""
    _, height, width, _ = video.shape
    context = v2a_contexts(config, video, audio.shape[0])
    q = rms_norm(linear(w, "q", audio), w["norm_q.weight"], config.eps)[:, None]  # [L, 1, A]
    k = rms_norm(linear(w, "k", context), w["norm_k.weight"], config.eps)  # [L, S, A]
    v = linear(w, "v", context)
    q, k, v = (heads_of(x, config.audio_heads) for x in (q, k, v))
    k = rotate(k, grid_angles(0, height, width, config.head_dim))
    attended = joined(softmax_attention(q, k, v))[:, 0]  # [L, A]
    return linear(w, "o", audio + attended if config.variant == "paper" else attended)


def face_mask(w: State, config, video: Tensor, embedding: Tensor) -> Tensor:
    """[..., D] -> [..., 1]; `embedding` is e of each token; the paper has `norm` for gamma, beta."""
    normed = layer_norm(video, config.eps)
    if config.variant == "paper":
        return torch.sigmoid(linear(w, "head", normed * w["norm.weight"] + w["norm.bias"]))
    shift, scale = w["modulation"][0, 0] + embedding, w["modulation"][0, 1] + embedding
    return torch.sigmoid(linear(w, "head", normed * (1 + scale) + shift))


def interact(
    w_a2v: State,
    w_v2a: State,
    config,
    video: Tensor,
    audio: Tensor,
    embedding: Tensor,
    a2v_on: bool,
    v2a_on: bool,
    speaker: Tensor | None = None,
    instead: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both updates, from the same features, and the mask: [T, h, w, D], [L, A], [T, h, w]."""
    mask = face_mask(part(w_a2v, "mask_head"), config, video, embedding)
    if speaker is not None:
        mask = speaker.view(mask.shape) * (torch.ones_like(mask) if instead else mask)
    to_video, to_audio = torch.zeros_like(video), torch.zeros_like(audio)
    if a2v_on:
        said = a2v(w_a2v, config, video, audio)
        if config.variant == "paper":
            to_video = mask * linear(w_a2v, "o", said)
        else:
            to_video = linear(w_a2v, "o", mask * said)
    if v2a_on:
        to_audio = v2a(w_v2a, config, mask * video, audio)
    return to_video, to_audio, mask[..., 0]


# the whole model


def time_vector(time: float, width: int) -> Tensor:
    """[cos | sin] of t * 10000^(-i/half)."""
    half = width // 2
    angles = [time * 10000.0 ** (-i / half) for i in range(half)]
    return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)


def embed_times(state: State, suffix: str, config, times: list[float]) -> tuple[Tensor, Tensor]:
    """One time per token -> e [n, dim], e0 [n, 6, dim]."""
    dtype = state["patch_embedding.weight"].dtype
    known = {
        t: mlp(part(state, f"time_embedding{suffix}"), time_vector(t, config.freq_dim).to(dtype), silu)
        for t in set(times)
    }
    e = torch.stack([known[t] for t in times])
    e0 = linear(state, f"time_projection{suffix}.1", silu(e)).unflatten(-1, (6, -1))
    return e, e0


def speech_features(state: State, ids: list[int]) -> Tensor:
    """`text_embedding.*`: symbol ids (-1 is filler) -> [n, speech dim]."""
    w = part(state, "text_embedding")
    embedding = w["text_embed.weight"]
    dim = embedding.shape[1]
    filler = torch.tensor([i == -1 for i in ids])
    x = torch.stack([embedding[i + 1] for i in ids])
    for n in range(len(ids)):
        angles = [n * 10000.0 ** (-2 * i / dim) for i in range(dim // 2)]
        x[n] += torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles]).to(x.dtype)
    x[filler] = 0
    layers = {int(k.split(".")[1]) for k in w if k.startswith("text_blocks.")}
    for layer in sorted(layers):
        b = part(w, f"text_blocks.{layer}")
        padded = F.pad(x, (0, 0, 3, 3))
        y = (
            torch.stack([(padded[n : n + 7] * b["dwconv.weight"][:, 0].T).sum(0) for n in range(len(ids))])
            + b["dwconv.bias"]
        )
        y = layer_norm(y, 1e-6) * b["norm.weight"] + b["norm.bias"]
        y = linear(b, "pwconv1", y)
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        g = torch.sqrt((y**2).sum(0, keepdim=True))
        y = (
            b["grn.gamma"].flatten() * (y * (g / (g.mean(-1, keepdim=True) + 1e-6)))
            + b["grn.beta"].flatten()
            + y
        )
        x = x + linear(b, "pwconv2", y)
        x[filler] = 0
    return x


def attention(
    w: State, heads: int, eps: float, x: Tensor, source: Tensor, x_angles=None, source_angles=None
) -> Tensor:
    q = heads_of(rms_norm(linear(w, "q", x), w["norm_q.weight"], eps), heads)
    k = heads_of(rms_norm(linear(w, "k", source), w["norm_k.weight"], eps), heads)
    v = heads_of(linear(w, "v", source), heads)
    q = q if x_angles is None else rotate(q, x_angles)
    k = k if source_angles is None else rotate(k, source_angles)
    return linear(w, "o", joined(softmax_attention(q, k, v)))


def block(
    w: State, heads: int, eps: float, x: Tensor, e0: Tensor, angles: Tensor, text: Tensor, cross=(None, None)
):
    shift1, scale1, gate1, shift2, scale2, gate2 = (w["modulation"] + e0).unbind(1)
    y = layer_norm(x, eps) * (1 + scale1) + shift1
    x = x + gate1 * attention(part(w, "self_attn"), heads, eps, y, y, angles, angles)
    y = layer_norm(x, eps) * w["norm3.weight"] + w["norm3.bias"]
    x = x + attention(part(w, "cross_attn"), heads, eps, y, text, *cross)
    y = layer_norm(x, eps) * (1 + scale2) + shift2
    return x + gate2 * mlp(part(w, "ffn"), y, gelu_tanh)


def head(w: State, eps: float, x: Tensor, e: Tensor) -> Tensor:
    shift, scale = w["modulation"][0, 0] + e, w["modulation"][0, 1] + e
    return linear(w, "head", layer_norm(x, eps) * (1 + scale) + shift)


@dataclass
class Clip:
    """One clip as the model gets it: known frames hold clean data already."""

    video: Tensor  # [48, T, H, W]
    audio: Tensor  # [L, 80]
    time: float
    caption: Tensor  # [n, caption dim]
    speech: Tensor  # [m, speech dim]
    reference_image: Tensor  # [48, 1, H, W]
    reference_mel: Tensor | None = None  # [Lr, 80]
    n_v: int | Tensor = 0  # conditioned latent frames: the first n, or bool [T]
    n_a: int | Tensor = 0  # conditioned mel frames: the first n, or bool [L]
    a2v: bool = True
    v2a: bool = True
    skip_layers: tuple[int, ...] = ()
    speaker: Tensor | None = None  # who speaks: [T, h * w] in 0..1
    instead: bool = False  # in place of the face mask, else times it


def forward(state: State, config, clip: Clip) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Velocities [48, T, H, W] and [L, 80], face masks [T, h * w] by interaction block."""
    eps, c = config.eps, config.head_dim
    _, frames, rows, columns = clip.video.shape
    height, width = rows // 2, columns // 2
    mels, tokens = clip.audio.shape[0], height * width
    reference = 0 if clip.reference_mel is None else clip.reference_mel.shape[0]

    kernel = state["patch_embedding.weight"].flatten(1)
    everything = torch.cat([clip.reference_image, clip.video], 1)
    x = torch.stack(
        [
            kernel @ everything[:, f, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten()
            + state["patch_embedding.bias"]
            for f in range(frames + 1)
            for i in range(height)
            for j in range(width)
        ]
    )
    mel = clip.audio if clip.reference_mel is None else torch.cat([clip.reference_mel, clip.audio])
    y = mlp(part(state, "audio_embedding"), mel, gelu_tanh)

    clean_v, clean_a = (
        [i < n for i in range(length)] if isinstance(n, int) else n.tolist()
        for n, length in ((clip.n_v, frames), (clip.n_a, mels))
    )
    x_times = [0.0 if clean else clip.time for clean in [True, *clean_v] for _ in range(tokens)]
    e_v, e0_v = embed_times(state, "", config, x_times)
    reference_time = 0.0 if config.variant == "paper" else clip.time
    if all(clean_a):
        reference_time = 0.0
    y_times = [reference_time] * reference + [0.0 if clean else clip.time for clean in clean_a]
    e_a, e0_a = embed_times(state, "_audio", config, y_times)

    padded = torch.zeros(config.caption_length, config.caption_dim, dtype=clip.caption.dtype)
    padded[: clip.caption.shape[0]] = clip.caption
    caption = mlp(part(state, "text_embedding_video"), padded, gelu_tanh)
    speech = linear(state, "text_proj", clip.speech)
    x_angles = torch.cat([grid_angles(f, height, width, c) for f in range(frames + 1)])
    y_angles = sequence_angles(reference + mels, c)
    text_angles = sequence_angles(speech.shape[0], c)

    def interaction(n: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        shape = (frames, height, width, -1)
        to_video, to_audio, mask = interact(
            part(state, f"a2v_blocks.{n}"),
            part(state, f"v2a_blocks.{n}"),
            config,
            x[tokens:].unflatten(0, shape[:3]),
            y[reference:],
            e_v[tokens:].unflatten(0, shape[:3]),
            clip.a2v,
            clip.v2a,
            clip.speaker,
            clip.instead,
        )
        masks[n] = mask.flatten(1)
        to_video[torch.tensor(clean_v)] = 0
        to_audio[torch.tensor(clean_a)] = 0
        x = torch.cat([x[:tokens], x[tokens:] + to_video.flatten(0, 2)])
        return x, torch.cat([y[:reference], y[reference:] + to_audio])

    masks: dict[int, Tensor] = {}
    for layer in range(config.layers):
        if layer in clip.skip_layers:
            continue
        meets = layer in config.interaction_layers and (clip.a2v or clip.v2a)
        if meets and config.variant == "paper":
            x, y = interaction(config.interaction_layers.index(layer), x, y)
        x = block(part(state, f"blocks.{layer}"), config.video_heads, eps, x, e0_v, x_angles, caption)
        y = block(
            part(state, f"audio_blocks.{layer}"),
            config.audio_heads,
            eps,
            y,
            e0_a,
            y_angles,
            speech,
            (y_angles, text_angles),
        )
        if meets and config.variant == "released":
            x, y = interaction(config.interaction_layers.index(layer), x, y)

    x = head(part(state, "head"), eps, x, e_v)[tokens:]
    velocity = torch.empty_like(clip.video)
    for n, token in enumerate(x):
        f, i, j = n // tokens, n % tokens // width, n % width
        velocity[:, f, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = token.reshape(2, 2, -1).permute(2, 0, 1)
    return velocity, head(part(state, "head_audio"), eps, y, e_a)[reference:], masks


# sampling and measuring


def relative_error(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12))


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors made inside the `with` that were alive at one time, as `peak`."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                key = storage._cdata
                if key not in given and key not in self.live:
                    self.live[key] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return out


def times(steps: int, shift: float) -> list[float]:
    """docs/model.md section 7 in float64: N times from 1000, then 0."""
    raw = [1000 - 999 * i / (steps - 1) if steps > 1 else 1000.0 for i in range(steps)] + [0.0]
    return [1000 * (shift * (t / 1000) / (1 + (shift - 1) * (t / 1000))) for t in raw]
