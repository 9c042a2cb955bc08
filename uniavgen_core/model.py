"""UniAVGen's dual-branch diffusion transformer (SPEC sections 1 to 5 and 10)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import rope
from .config import Config
from .convnext import SpeechEncoder
from .interaction.a2v import A2V, zero_output
from .interaction.alignment import align
from .interaction.v2a import V2A, MelGroups, group_mels
from .layers import Attention, Block, Head, KeyValue, TimeEmbedding, linear_float32, sdpa, sinusoid

# Under torch.compile the bookkeeping runs as it is and single blocks are compiled, one graph for all layers.
uncompiled = partial(torch.compiler.disable, recursive=False)


class Velocity(NamedTuple):
    """`noise - data`, float32: video `[B, C, T, H, W]` without the reference frame, audio `[B, L, bands]`.

    `face_masks`: interaction block -> `[B, T, H/2 * W/2]` in 0..1, for the blocks that were run.
    """

    video: Tensor
    audio: Tensor
    face_masks: dict[int, Tensor]


class Cache(dict):
    """What stays the same between the steps of one sampling run (SPEC 10.4, 10.5).

    One cache per pair of texts (so one for the full pass, one for the null pass); valid as long as
    texts, references, known frames and shapes stay what they were. Drop it to free its memory.
    """

    @uncompiled
    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self:
            self[key] = compute()
        return self[key]


def _gradient(wanted: bool) -> AbstractContextManager:
    """A branch known whole carries no loss and is kept out of the gradient: nothing is stored for it."""
    return nullcontext() if wanted else torch.no_grad()


@dataclass
class _Branch:
    """One branch during one forward."""

    tokens: Tensor  # [B, N, dim] float32
    blocks: nn.ModuleList
    time: TimeEmbedding
    rotary: rope.Rotary
    text: list[KeyValue]  # keys and values of every layer's cross-attention
    attention: Attention
    record: Cache | None  # of a branch that does not change between steps, else None
    text_rotary: rope.Rotary | None = None
    mask: Tensor | None = None
    text_mask: Tensor | None = None

    @property
    def replayed(self) -> bool:
        return self.record is not None and "velocity" in self.record

    @uncompiled
    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        return compute() if self.record is None else self.record.once(key, compute)

    @uncompiled
    def run(self, layer: int) -> None:
        if self.replayed:
            return
        with _gradient(self.record is None):
            self.tokens = self.blocks[layer](
                self.tokens,
                self.time,
                self.text[layer],
                self.attention,
                self.rotary,
                self.text_rotary,
                self.mask,
                self.text_mask,
            )


class _Exchange(NamedTuple):
    """Everything about the interaction that one sampling run keeps: who is changed and by whom."""

    a2v: bool
    v2a: bool
    frames: Tensor  # latent frames that A2V changes [T']
    mels: Tensor  # mel frames that V2A changes [n]
    mel_count: int  # L
    window: Tensor  # [T', W]
    groups: MelGroups | None
    phase: Tensor | None  # of those mel frames [n]
    rotary: rope.Rotary  # (row, column) of a frame's tokens
    window_rotary: rope.Rotary


@uncompiled
def _exchange(
    config: Config, known_video: Tensor, known_audio: Tensor, video: Tensor, a2v: bool, v2a: bool
) -> _Exchange:
    frames, mels = (~known_video).nonzero()[:, 0], (~known_audio).nonzero()[:, 0]
    alignment = align(config, len(known_video), len(known_audio))
    height, width = (-(-n // p) for n, p in zip(video.shape[3:], config.patch))
    window, device = alignment.window[frames], video.device
    groups = (
        group_mels(alignment.frame[mels], alignment.weight[mels], len(known_video)) if len(mels) else None
    )
    return _Exchange(
        a2v=a2v and len(frames) > 0,
        v2a=v2a and len(mels) > 0,
        frames=frames.to(device),
        mels=mels.to(device),
        mel_count=len(known_audio),
        window=window.to(device),
        groups=groups and groups.to(device),
        phase=None if alignment.phase is None else alignment.phase[mels].to(device),
        rotary=rope.grid(1, height, width, config.head_dim).to(device),
        window_rotary=rope.window(window.shape[1], config.head_dim).to(device),
    )


def _known(branch: str, known: Tensor | None, length: int) -> Tensor:
    if known is None:
        return torch.zeros(length, dtype=torch.bool)
    if known.shape != (length,) or known.dtype != torch.bool:
        raise ValueError(
            f"known_{branch} is {known.dtype} {tuple(known.shape)}, expected torch.bool ({length},)"
        )
    return known.cpu()


class DualBranchDiT(nn.Module):
    """Two parallel diffusion transformers, video and audio, that exchange information in both directions.

    Args:
        config: sizes and variant.
        ops: namespace the layers are built from (Linear, Conv1d, Conv3d, Embedding, LayerNorm, RMSNorm);
            `torch.nn` by default, a host hands in its own.
        device, dtype: of the parameters.
    """

    def __init__(self, config: Config, ops=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        c = self.config = config
        d, a = c.video_dim, c.audio_dim
        patch = (1, *c.patch)
        outputs = c.video_channels * c.patch[0] * c.patch[1]

        def linear(i: int, o: int) -> nn.Module:
            return ops.Linear(i, o, **factory)

        self.patch_embedding = ops.Conv3d(c.video_channels, d, kernel_size=patch, stride=patch, **factory)
        self.audio_embedding = nn.Sequential(linear(c.audio_channels, a), nn.GELU("tanh"), linear(a, a))
        self.audio_padding = nn.Parameter(torch.zeros(a, **factory))
        self.text_embedding_video = nn.Sequential(linear(c.caption_dim, d), nn.GELU("tanh"), linear(d, d))
        self.text_embedding = SpeechEncoder(c.speech_vocab, c.speech_dim, c.speech_layers, ops, **factory)
        self.text_proj = ops.Linear(c.speech_dim, a, bias=False, **factory)
        self.time_embedding = nn.Sequential(linear(c.freq_dim, d), nn.SiLU(), linear(d, d))
        self.time_projection = nn.Sequential(nn.SiLU(), linear(d, 6 * d))
        self.time_embedding_audio = nn.Sequential(linear(c.freq_dim, a), nn.SiLU(), linear(a, a))
        self.time_projection_audio = nn.Sequential(nn.SiLU(), linear(a, 6 * a))
        self.blocks = nn.ModuleList(
            Block(d, c.video_heads, c.video_ffn, c.eps, ops, **factory) for _ in range(c.layers)
        )
        self.audio_blocks = nn.ModuleList(
            Block(a, c.audio_heads, c.audio_ffn, c.eps, ops, **factory) for _ in range(c.layers)
        )
        self.a2v_blocks = nn.ModuleList(A2V(c, ops, **factory) for _ in c.interaction_layers)
        self.v2a_blocks = nn.ModuleList(V2A(c, ops, **factory) for _ in c.interaction_layers)
        self.head = Head(d, outputs, c.eps, ops, **factory)
        self.head_audio = Head(a, c.audio_channels, c.eps, ops, **factory)
        if c.variant != "released" and ops is nn and self.audio_padding.device.type != "meta":
            for layer in (*self.a2v_blocks, *self.v2a_blocks):
                zero_output(layer)

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored weights; latents and texts are handed to `forward` in the dtype to compute in."""
        return self.patch_embedding.weight.dtype

    @uncompiled
    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        time: Tensor,
        caption: Tensor,
        speech: Tensor,
        *,
        reference_image: Tensor,
        reference_mel: Tensor | None = None,
        known_video: Tensor | None = None,
        known_audio: Tensor | None = None,
        reference_mel_lengths: Tensor | None = None,
        speech_lengths: Tensor | None = None,
        a2v: bool = True,
        v2a: bool = True,
        skip_layers: tuple[int, ...] = (),
        cache: Cache | None = None,
        attention: Attention = sdpa,
        audio_attention: Attention = sdpa,
    ) -> Velocity:
        """The velocity of both latents at one time.

        Args:
            video: `[B, C, T, H, W]` noisy latent, clean where known; decides the dtype of all matmuls.
            audio: `[B, L, bands]` noisy latent, clean where known.
            time: `[B]` in 0..1000.
            caption: `[B, <=caption_length, caption_dim]`, zero-padded here.
            speech: `[B, N, speech_dim]`, features of the `SpeechEncoder`.
            reference_image: `[B, C, 1, H, W]` clean latent.
            reference_mel: `[B, Lr, bands]` clean latent of a reference voice.
            known_video, known_audio: bool `[T]`, `[L]`; true where the latent holds clean data.
            reference_mel_lengths, speech_lengths: `[B]`, where samples of a batch differ (ragged batch).
            a2v, v2a: the two directions of the interaction.
            skip_layers: layers left out whole, in both branches and with their interaction.
            cache: of this run and these texts, see `Cache`.
            attention, audio_attention: see `Attention`; the second serves the audio branch and A2V.

        A branch that is known whole is read without a gradient: its blocks learn nothing from the other.

        Raises:
            ValueError: shapes that do not fit together.
        """
        lengths = (reference_mel_lengths, speech_lengths)
        self._check(video, audio, time, caption, speech, reference_image, reference_mel, *lengths)
        c = self.config
        cache = Cache() if cache is None else cache
        known_video = _known("video", known_video, video.shape[2])
        known_audio = _known("audio", known_audio, audio.shape[1])
        with _gradient(not known_video.all()):
            v = self._video_branch(
                video, reference_image, time, caption, known_video, skip_layers, cache, attention
            )
        with _gradient(not known_audio.all()):
            a = self._audio_branch(
                audio, reference_mel, time, speech, known_audio, skip_layers, *lengths, cache, audio_attention
            )
        exchange = cache.once(
            ("exchange", a2v, v2a), lambda: _exchange(c, known_video, known_audio, video, a2v, v2a)
        )
        face_masks: dict[int, Tensor] = {}
        for i in range(c.layers):
            if i in skip_layers:
                continue
            if c.variant == "released":
                v.run(i)
                a.run(i)
            if i in c.interaction_layers:
                block = c.interaction_layers.index(i)
                mask = self._interact(block, v, a, exchange, audio_attention, video.dtype)
                if mask is not None:
                    face_masks[block] = mask
            if c.variant != "released":
                v.run(i)
                a.run(i)
        with _gradient(v.record is None):
            video_velocity = v.once("velocity", lambda: self._video_velocity(v, video))
        with _gradient(a.record is None):
            audio_velocity = a.once("velocity", lambda: self._audio_velocity(a, audio))
        return Velocity(video_velocity, audio_velocity, face_masks)

    @uncompiled
    def _video_branch(
        self,
        video: Tensor,
        reference: Tensor,
        time: Tensor,
        caption: Tensor,
        known: Tensor,
        skip_layers: tuple[int, ...],
        cache: Cache,
        attention: Attention,
    ) -> _Branch:
        c = self.config
        x = torch.cat((reference, video), dim=2)
        rows, columns = (-x.shape[3] % c.patch[0], -x.shape[4] % c.patch[1])
        if rows or columns:
            x = F.pad(x, (0, columns, 0, rows, 0, 0), mode="replicate")
        x = self.patch_embedding(x)  # [B, D, T + 1, H / 2, W / 2]

        def caption_memory() -> list[KeyValue]:
            tokens = self.text_embedding_video(F.pad(caption, (0, 0, 0, c.caption_length - caption.shape[1])))
            return [block.cross_attn.look_at(tokens) for block in self.blocks]

        return _Branch(
            tokens=x.flatten(2).transpose(1, 2).float(),
            blocks=self.blocks,
            time=_embed_time(
                self.time_embedding, self.time_projection, c.freq_dim, time, F.pad(known, (1, 0), value=True)
            ),
            rotary=cache.once("video rotary", lambda: rope.grid(*x.shape[2:], c.head_dim).to(x.device)),
            text=cache.once("caption", caption_memory),
            attention=attention,
            record=_record(cache, "video", known, skip_layers),
        )

    @uncompiled
    def _audio_branch(
        self,
        audio: Tensor,
        reference: Tensor | None,
        time: Tensor,
        speech: Tensor,
        known: Tensor,
        skip_layers: tuple[int, ...],
        reference_lengths: Tensor | None,
        speech_lengths: Tensor | None,
        cache: Cache,
        attention: Attention,
    ) -> _Branch:
        c = self.config
        before = 0 if reference is None else reference.shape[1]
        x = audio if reference is None else torch.cat((reference, audio), dim=1)
        tokens = self.audio_embedding(x).float()  # [B, Lr + L, A]
        positions, mask = torch.arange(x.shape[1]), None
        if reference_lengths is not None:
            place = torch.arange(before)
            lengths = reference_lengths.cpu()[:, None]
            padding = F.pad(place >= lengths, (0, audio.shape[1]), value=False)
            positions = torch.cat((place.expand(len(lengths), -1), lengths + torch.arange(audio.shape[1])), 1)
            padding = padding.to(x.device)
            tokens = torch.where(padding.unsqueeze(-1), self.audio_padding.to(tokens), tokens)
            mask = ~padding[:, None, None]

        # The release gives the reference mel the time of the rest; the others know it to be clean.
        reference_clean = c.variant != "released" or bool(known.all())
        clean = torch.cat((torch.full((before,), reference_clean), known))
        if clean.all() or not clean.any():
            clean = clean[:1]  # one time for all tokens
        text_mask = None
        if speech_lengths is not None:
            text_mask = torch.arange(speech.shape[1], device=x.device) < speech_lengths.to(x.device)[:, None]
            text_mask = text_mask[:, None, None]

        def speech_memory() -> list[KeyValue]:
            tokens = self.text_proj(speech)
            places = rope.sequence(torch.arange(speech.shape[1]), c.head_dim).to(x.device)
            return [block.cross_attn.look_at(tokens, places) for block in self.audio_blocks]

        rotary = cache.once("audio rotary", lambda: rope.sequence(positions, c.head_dim).to(x.device))
        return _Branch(
            tokens=tokens,
            blocks=self.audio_blocks,
            time=_embed_time(self.time_embedding_audio, self.time_projection_audio, c.freq_dim, time, clean),
            rotary=rotary,
            text_rotary=rotary,
            text=cache.once("speech", speech_memory),
            attention=attention,
            record=_record(cache, "audio", known, skip_layers),
            mask=mask,
            text_mask=text_mask,
        )

    @uncompiled
    def _interact(
        self, block: int, v: _Branch, a: _Branch, x: _Exchange, attention: Attention, dtype: torch.dtype
    ) -> Tensor | None:
        """Both directions, from the same features; the face mask if one was made."""
        a2v, v2a = self.a2v_blocks[block], self.v2a_blocks[block]
        # A branch that does not change is recorded with all that later steps may read of it.
        read_video, read_audio = x.v2a or v.record is not None, x.a2v or a.record is not None
        video = v.tokens.unflatten(1, (-1, len(x.rotary.cos)))  # [B, T + 1, S, D]
        audio = a.tokens[:, -x.mel_count :]
        mask = update_video = update_audio = None
        if x.a2v or read_video:
            mask = v.once(
                ("mask", block), lambda: a2v.mask_head(video[:, 1:], v.time.embedding[:, 1:], dtype)
            )
        if read_video:
            seen = v.once(
                ("read", block),
                lambda: v2a.read((mask.unsqueeze(-1) * video[:, 1:]).to(dtype), x.rotary),
            )
        if read_audio:
            heard = a.once(("read", block), lambda: a2v.look_at(audio.to(dtype)))
        if x.a2v:
            update_video = a2v(
                video[:, x.frames + 1],
                mask[:, x.frames],
                heard,
                x.window,
                attention,
                x.rotary,
                x.window_rotary,
            )
        if x.v2a:
            update_audio = v2a(audio[:, x.mels], seen, x.groups, x.phase)
        if update_video is not None:
            v.tokens = video.index_add(1, x.frames + 1, update_video.float()).flatten(1, 2)
        if update_audio is not None:
            first = a.tokens.shape[1] - x.mel_count
            a.tokens = a.tokens.index_add(1, first + x.mels, update_audio.float())
        return mask

    def _video_velocity(self, v: _Branch, video: Tensor) -> Tensor:
        p, q = self.config.patch
        height, width = video.shape[3:]
        tokens = v.tokens.shape[1] // (video.shape[2] + 1)
        out = self.head(v.tokens[:, tokens:], v.time.embedding[:, 1:], video.dtype)
        out = rearrange(
            out, "b (t h w) (p q c) -> b c t (h p) (w q)", t=video.shape[2], h=-(-height // p), p=p, q=q
        )
        return out[..., :height, :width]

    def _audio_velocity(self, a: _Branch, audio: Tensor) -> Tensor:
        embedding = a.time.embedding
        if embedding.shape[1] > 1:
            embedding = embedding[:, -audio.shape[1] :]
        return self.head_audio(a.tokens[:, -audio.shape[1] :], embedding, audio.dtype)

    def _check(
        self,
        video: Tensor,
        audio: Tensor,
        time: Tensor,
        caption: Tensor,
        speech: Tensor,
        reference_image: Tensor,
        reference_mel: Tensor | None,
        reference_mel_lengths: Tensor | None,
        speech_lengths: Tensor | None,
    ) -> None:
        c, batch = self.config, video.shape[0]
        expected = {
            "video": (video, (batch, c.video_channels, None, None, None)),
            "audio": (audio, (batch, None, c.audio_channels)),
            "time": (time, (batch,)),
            "caption": (caption, (batch, None, c.caption_dim)),
            "speech": (speech, (batch, None, c.speech_dim)),
            "reference_image": (reference_image, (batch, c.video_channels, 1, *video.shape[3:])),
        }
        if reference_mel is not None:
            expected["reference_mel"] = (reference_mel, (batch, None, c.audio_channels))
        for name, (x, shape) in expected.items():
            if x.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, x.shape)):
                wanted = ", ".join("any" if n is None else str(n) for n in shape)
                raise ValueError(f"{name} has shape {tuple(x.shape)}, expected ({wanted})")
        for name, lengths, padded in (
            ("reference_mel", reference_mel_lengths, reference_mel),
            ("speech", speech_lengths, speech),
        ):
            if lengths is None:
                continue
            longest = 0 if padded is None else padded.shape[1]
            if lengths.shape != (batch,) or int(lengths.max()) > longest:
                raise ValueError(
                    f"{name}_lengths {lengths.tolist()} do not fit {batch} samples of at most {longest}"
                )
        if caption.shape[1] > c.caption_length:
            raise ValueError(f"caption has {caption.shape[1]} tokens, at most {c.caption_length} fit")


def _record(cache: Cache, branch: str, known: Tensor, skip_layers: tuple[int, ...]) -> Cache | None:
    return cache.once((branch, tuple(skip_layers)), Cache) if known.all() else None


def _embed_time(
    embed: nn.Sequential, project: nn.Sequential, width: int, time: Tensor, clean: Tensor
) -> TimeEmbedding:
    """Two times at most: that of the step and 0 where `clean` (bool `[G]`, on the CPU)."""
    times = torch.cat((time, time.new_zeros(1)))
    e = linear_float32(embed[2], F.silu(linear_float32(embed[0], sinusoid(times, width))))
    e0 = linear_float32(project[1], F.silu(e)).unflatten(-1, (6, -1))

    def spread(x: Tensor) -> Tensor:  # [B + 1, ...] -> [B, G, ...]
        return torch.where(clean.to(x.device).view(1, -1, *[1] * (x.ndim - 1)), x[-1], x[:-1, None])

    return TimeEmbedding(spread(e), spread(e0))
