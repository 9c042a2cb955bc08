"""UniAVGen's dual-branch diffusion transformer (docs/model.md sections 1 to 5 and 10)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import rope
from .a2v import A2V, zero_output
from .branches import AudioBranch, VideoBranch, gradient
from .cache import Cache, Constants, Stage, get_or_compute
from .config import Config
from .inputs import ActiveParts, Conditioned, References, Speaker, TextConditioning, Velocity, check
from .interaction import Interaction, interact, plan_interaction
from .layers import Attention, Block, Head, embed_scales, embed_time, sdpa, uncompiled
from .speech_encoder import SpeechEncoder
from .v2a import V2A
from .variants import VARIANTS


class DualBranchDiT(nn.Module):
    """Two parallel diffusion transformers, video and audio, with an asymmetric cross-modal interaction.

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
        if c.distilled:
            self.guidance_embedding = nn.Sequential(linear(2, d), nn.SiLU(), linear(d, d))
            self.guidance_embedding_audio = nn.Sequential(linear(2, a), nn.SiLU(), linear(a, a))
        if VARIANTS[c.variant].zero_init and ops is nn and self.audio_padding.device.type != "meta":
            for interaction in self.interactions():
                zero_output(interaction.a2v)
                zero_output(interaction.v2a)

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored weights; latents and texts are handed to `forward` in the dtype to compute in."""
        return self.patch_embedding.weight.dtype

    @uncompiled
    def interactions(self) -> list[Interaction]:
        """Both directions of every interaction layer."""
        pairs = enumerate(zip(self.a2v_blocks, self.v2a_blocks))
        return [Interaction(block, cast(A2V, a2v), cast(V2A, v2a)) for block, (a2v, v2a) in pairs]

    @uncompiled
    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        time: Tensor,
        text: TextConditioning,
        references: References,
        conditioned: Conditioned | None = None,
        active: ActiveParts = ActiveParts(),  # noqa: B008 (frozen)
        cache: Cache | None = None,
        attention: Attention = sdpa,
        audio_attention: Attention = sdpa,
        on_layer: Callable[[int], None] = lambda layer: None,
        scales: Tensor | None = None,
        speaker: Speaker | None = None,
    ) -> Velocity:
        """The velocity of both latents at one time.

        Args:
            video: `[B, C, T, H, W]` noisy latent, clean where conditioned; decides the dtype of all matmuls.
            audio: `[B, L, bands]` noisy latent, clean where conditioned.
            time: `[B]` in 0..1000.
            conditioned: where the latents are clean; nowhere by default.
            cache: of this run and these texts, see `Cache`.
            attention, audio_attention: see `Attention`; the second serves the audio branch and A2V.
            on_layer: called with the number of each layer before its blocks are run.
            scales: `[B, 2]`, s_v and s_a; for a distilled model alone, which takes 1 and 1 without them.
            speaker: a face mask from outside; the same as long as a cache is kept.

        A branch that is conditioned whole is read without a gradient: its blocks learn nothing of the other.

        Raises:
            ValueError: shapes that do not fit together.
        """
        if conditioned is None:
            conditioned = Conditioned.none(video.shape[2], audio.shape[1])
        check(self.config, video, audio, time, text, references, conditioned, speaker)
        if scales is not None and not self.config.distilled:
            raise ValueError("scales are given to a model that is not distilled")
        if scales is None and self.config.distilled:
            scales = time.new_ones(len(time), 2)
        conditioned = Conditioned(conditioned.video.cpu(), conditioned.audio.cpu())
        kept = Cache() if cache is None else cache
        constants = kept.constants = kept.constants or self._constants(video, audio, text, references)
        plan = get_or_compute(
            kept.plans,
            (active.a2v, active.v2a),
            lambda: plan_interaction(self.config, conditioned, video, active.a2v, active.v2a),
        )
        stages = self._stages(active.skip_layers)

        with gradient(not conditioned.video.all()):
            v = self._embed_video(video, time, references, conditioned, constants, attention, scales, speaker)
        with gradient(not conditioned.audio.all()):
            a = self._embed_audio(
                audio, time, text, references, conditioned, constants, audio_attention, scales
            )
        if cache is not None:
            v, a = cache.replayed(v, a, conditioned, active.skip_layers, stages, plan.rotary)
        face_masks: dict[int, Tensor] = {}
        for stage in stages:
            if not isinstance(stage, Interaction):
                on_layer(stage)
                v.run(stage)
                a.run(stage)
            elif plan.a2v or plan.v2a:
                face_masks[stage.block] = interact(stage, v, a, plan, audio_attention)
        return Velocity(v.velocity(), a.velocity(), face_masks)

    @uncompiled
    def _stages(self, skip_layers: tuple[int, ...]) -> list[Stage]:
        """The order of a pass; a layer's number stands for its two blocks."""
        interactions = dict(zip(self.config.interaction_layers, self.interactions()))
        before = VARIANTS[self.config.variant].before_blocks
        stages: list[Stage] = []
        for layer in range(self.config.layers):
            if layer in skip_layers:
                continue
            here = [interactions[layer]] if layer in interactions else []
            stages += [*here, layer] if before else [layer, *here]
        return stages

    @uncompiled
    def _constants(
        self, video: Tensor, audio: Tensor, text: TextConditioning, references: References
    ) -> Constants:
        c, device = self.config, video.device
        rows, columns = (-(-n // p) for n, p in zip(video.shape[3:], c.patch))
        positions = _audio_positions(audio, references)
        caption = F.pad(text.caption, (0, 0, 0, c.caption_length - text.caption.shape[1]))
        caption, speech = self.text_embedding_video(caption), self.text_proj(text.speech)
        places = rope.sequence(torch.arange(speech.shape[1]), c.head_dim).to(device)
        return Constants(
            video_rotary=rope.grid(video.shape[2] + 1, rows, columns, c.head_dim).to(device),
            audio_rotary=rope.sequence(positions, c.head_dim).to(device),
            caption_kv=[cast(Block, block).cross_attn.project_kv(caption) for block in self.blocks],
            speech_kv=[
                cast(Block, block).cross_attn.project_kv(speech, places) for block in self.audio_blocks
            ],
        )

    @uncompiled
    def _embed_video(
        self,
        video: Tensor,
        time: Tensor,
        references: References,
        conditioned: Conditioned,
        constants: Constants,
        attention: Attention,
        scales: Tensor | None,
        speaker: Speaker | None,
    ) -> VideoBranch:
        c = self.config
        x = torch.cat((references.image, video), dim=2)
        rows, columns = (-x.shape[3] % c.patch[0], -x.shape[4] % c.patch[1])
        if rows or columns:
            x = F.pad(x, (0, columns, 0, rows, 0, 0), mode="replicate")
        x = self.patch_embedding(x)  # [B, D, T + 1, H / 2, W / 2]
        clean = F.pad(conditioned.video, (1, 0), value=True)  # the reference image and what is conditioned
        guide = None if scales is None else embed_scales(self.guidance_embedding, scales)
        return VideoBranch(
            tokens=x.flatten(2).transpose(1, 2).float(),
            blocks=self.blocks,
            head=self.head,
            time=embed_time(self.time_embedding, self.time_projection, c.freq_dim, time, clean, guide),
            rotary=constants.video_rotary,
            text_kv=constants.caption_kv,
            attention=attention,
            fixed=bool(conditioned.video.all()),
            dtype=video.dtype,
            size=(video.shape[2], video.shape[3], video.shape[4]),
            patch=c.patch,
            speaker=speaker,
        )

    @uncompiled
    def _embed_audio(
        self,
        audio: Tensor,
        time: Tensor,
        text: TextConditioning,
        references: References,
        conditioned: Conditioned,
        constants: Constants,
        attention: Attention,
        scales: Tensor | None,
    ) -> AudioBranch:
        c = self.config
        x = audio if references.mel is None else torch.cat((references.mel, audio), dim=1)
        before = x.shape[1] - audio.shape[1]
        tokens = self.audio_embedding(x).float()  # [B, Lr + L, A]
        mask = text_mask = None
        if references.mel_lengths is not None:
            reference = _within(references.mel_lengths, before, x.device)
            real = F.pad(reference, (0, audio.shape[1]), value=True)
            tokens = torch.where(real.unsqueeze(-1), tokens, self.audio_padding.to(tokens))
            mask = real[:, None, None]
        if text.speech_lengths is not None:
            text_mask = _within(text.speech_lengths, text.speech.shape[1], x.device)[:, None, None]
        # The release gives the reference mel the time of the rest; the paper knows it to be clean.
        reference_clean = VARIANTS[c.variant].reference_mel_clean or bool(conditioned.audio.all())
        clean = torch.cat((torch.full((before,), reference_clean), conditioned.audio))
        if clean.all() or not clean.any():
            clean = clean[:1]  # one time for all tokens
        guide = None if scales is None else embed_scales(self.guidance_embedding_audio, scales)
        return AudioBranch(
            tokens=tokens,
            blocks=self.audio_blocks,
            head=self.head_audio,
            time=embed_time(
                self.time_embedding_audio, self.time_projection_audio, c.freq_dim, time, clean, guide
            ),
            rotary=constants.audio_rotary,
            text_kv=constants.speech_kv,
            attention=attention,
            fixed=bool(conditioned.audio.all()),
            dtype=audio.dtype,
            text_rotary=constants.audio_rotary,
            mask=mask,
            text_mask=text_mask,
            length=audio.shape[1],
        )


def _within(lengths: Tensor, longest: int, device: torch.device) -> Tensor:
    """Bool `[B, longest]`: true below the length of each sample."""
    return torch.arange(longest, device=device) < lengths.to(device)[:, None]


def _audio_positions(audio: Tensor, references: References) -> Tensor:
    """`[Lr + L]`, or `[B, Lr + L]` where the target follows reference mels of different lengths."""
    before = 0 if references.mel is None else references.mel.shape[1]
    if references.mel_lengths is None:
        return torch.arange(before + audio.shape[1])
    lengths = references.mel_lengths.cpu()[:, None]
    reference = torch.arange(before).expand(len(lengths), -1)
    return torch.cat((reference, lengths + torch.arange(audio.shape[1])), dim=1)
