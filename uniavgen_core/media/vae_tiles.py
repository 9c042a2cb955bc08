"""The Wan2.2 VAE in tiles of space and time that are exact: no blending, no seam (docs/memory.md).

It is causal in time: each of its convolutions keeps the last two frames of what it saw, so it works on one
latent frame at a time and tiles of time are exact as they are. In space only the middle block attends to the
whole frame, at the size of the latent, where it costs little; the others are convolutions. So the middle is
computed for whole frames, and the rest in tiles, each with a margin as wide as the convolutions still to come
reach. Decoding cuts the margin off as soon as they have been applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS = 8  # to a side that a latent position becomes, before the patches are unfolded
RESNET = 2  # convolutions of a residual block, each of which reaches one pixel far
CONVOLUTIONS = 100  # more than there are; diffusers numbers their caches in their order


class Tiles(NamedTuple):
    """Rows and columns of tiles that a frame is cut into."""

    rows: int = 1
    columns: int = 1

    def grid(self, height: int, width: int) -> list[tuple[Span, Span]]:
        """Rows and columns of each tile of a latent frame."""
        return [(r, c) for r in _cut(height, self.rows) for c in _cut(width, self.columns)]


class Span(NamedTuple):
    """A range of rows or columns: begin (included) to end (not included)."""

    begin: int
    end: int

    def within(self, outer: Span) -> slice:
        """Where it lies in `outer`."""
        return slice(self.begin - outer.begin, self.end - outer.begin)

    def at(self, factor: int) -> Span:
        return Span(self.begin * factor, self.end * factor)


def _cut(length: int, parts: int) -> list[Span]:
    """`length` positions in `parts` spans of nearly the same size."""
    ends = [length * i // parts for i in range(parts + 1)]
    return [Span(a, b) for a, b in pairwise(ends) if b > a]


def decode(
    model: Any, raw: Tensor, tiles: Tiles, on_part: Callable[[int, int], None] = lambda done, parts: None
) -> Tensor:
    """What `diffusers.AutoencoderKLWan.decode` makes of `raw` `[B, C, T, h, w]`, on the CPU.

    The result is `[B, 3, 4(T-1)+1, 16h, 16w]` in -1..1, equal to the whole up to the rounding of convolutions
    of other sizes. `on_part(done, parts)`: a part is one latent frame of one tile.
    """
    patch = model.config.patch_size
    batch, _, frames, height, width = raw.shape
    grid = tiles.grid(height, width)
    size = (4 * (frames - 1) + 1, PIXELS * patch * height, PIXELS * patch * width)
    out = torch.empty(batch, model.config.out_channels // patch**2, *size, dtype=raw.dtype)
    kept = list(middles(model, raw))
    done = 0
    for row, column in grid:
        h, w = row.at(PIXELS * patch), column.at(PIXELS * patch)
        first = 0
        for pixels in decode_tile(model.decoder, kept, row, column):
            last = first + pixels.shape[2]
            pixels = _unfolded(pixels, patch).clamp(-1, 1)
            out[:, :, first:last, h.begin : h.end, w.begin : w.end] = pixels
            first, done = last, done + 1
            on_part(done, len(grid) * frames)
    return out


def encode(model: Any, frames: Tensor, tiles: Tiles) -> Tensor:
    """The mode that `diffusers.AutoencoderKLWan.encode` finds for frames `[B, 3, F, H, W]`, F = 4n+1.

    The frames may lie elsewhere than the model; the result `[B, C, n+1, H/16, W/16]` is where the model is.
    """
    encoder, patch = model.encoder, model.config.patch_size
    height, width = (n // (PIXELS * patch) for n in frames.shape[3:])
    features: list[Tensor] = []
    for row, column in tiles.grid(height, width):
        for i, x in enumerate(encode_tile(model, frames, row, column)):
            if i == len(features):
                features.append(x.new_empty(*x.shape[:3], height, width))
            features[i][..., row.begin : row.end, column.begin : column.end] = x
    cache: list[Any] = [None] * CONVOLUTIONS
    out = []
    for x in features:
        place = [0]
        x = encoder.mid_block(x, feat_cache=cache, feat_idx=place)
        x = encoder.nonlinearity(encoder.norm_out(x))
        x, cache[place[0]] = _causal(encoder.conv_out, x, cache[place[0]])
        out.append(x)
    return model.quant_conv(torch.cat(out, dim=2)).chunk(2, dim=1)[0]


def encode_tile(model: Any, frames: Tensor, row: Span, column: Span) -> Iterator[Tensor]:
    """What the middle block of the encoder is given of a tile, `[B, D, 1, rows, columns]` by latent frame."""
    encoder, patch = model.encoder, model.config.patch_size
    reach = 0
    for block in reversed(encoder.down_blocks):
        if block.downsampler is not None:  # a convolution with stride two, which reaches two pixels further
            reach = 2 * reach + 2
        reach += RESNET * len(block.resnets)
    margin = -(-(reach + 1) // PIXELS)
    size = [n // (PIXELS * patch) for n in frames.shape[3:]]
    wide = [Span(max(s.begin - margin, 0), min(s.end + margin, n)) for s, n in zip((row, column), size)]
    (h, w), (rows, columns) = (
        [slice(s.begin, s.end) for s in (span.at(PIXELS * patch) for span in wide)],
        [span.within(outer) for span, outer in zip((row, column), wide)],
    )
    device, dtype = encoder.conv_in.weight.device, encoder.conv_in.weight.dtype
    cache: list[Any] = [None] * CONVOLUTIONS
    for i in range((frames.shape[2] + 3) // 4):  # the first frame, then four at a time
        chunk = frames[:, :, max(4 * i - 3, 0) : 4 * i + 1, h, w]
        x = _folded(chunk.to(device, dtype), patch)
        place = [1]
        x, cache[0] = _causal(encoder.conv_in, x, cache[0])
        for block in encoder.down_blocks:
            x = block(x, feat_cache=cache, feat_idx=place)
        yield x[..., rows, columns]


def middles(model: Any, raw: Tensor) -> Iterator[Tensor]:
    """Each latent frame after the middle block `[B, D, 1, h, w]`."""
    decoder = model.decoder
    cache: list[Any] = [None] * CONVOLUTIONS
    for i in range(raw.shape[2]):
        x = model.post_quant_conv(raw[:, :, i : i + 1])
        place = [1]
        x, cache[0] = _causal(decoder.conv_in, x, cache[0])
        yield decoder.mid_block(x, feat_cache=cache, feat_idx=place)


def decode_tile(decoder: Any, frames: list[Tensor], row: Span, column: Span) -> Iterator[Tensor]:
    """The decoder's output `[B, 12, 1 or 4, 8 rows, 8 columns]` of each latent frame of a tile.

    `frames`: what `middles` gave.
    """
    blocks, size = decoder.up_blocks, frames[0].shape[-2:]
    cache: list[Any] = [None] * CONVOLUTIONS
    reaches = _reaches(blocks)
    for i, x in enumerate(frames):
        place, scale = [0], 1
        spans = tuple(Span(0, n) for n in size)
        for block, reach in zip(blocks, reaches):
            x, spans = _cropped(x, spans, (row, column), size, scale, reach)
            x = block(x, feat_cache=cache, feat_idx=place, first_chunk=i == 0)
            if block.upsampler is not None:
                scale *= 2
                spans = tuple(span.at(2) for span in spans)
        x, spans = _cropped(x, spans, (row, column), size, scale, 1)
        x = decoder.nonlinearity(decoder.norm_out(x))
        x, cache[place[0]] = _causal(decoder.conv_out, x, cache[place[0]])
        yield _cropped(x, spans, (row, column), size, scale, 0)[0]


def _reaches(blocks: Any) -> list[int]:
    """How far beyond a tile the output depends on each block's input, in that input's pixels."""
    reaches, reach = [], 1  # that of the last convolution
    for block in reversed(blocks):
        if block.upsampler is not None:  # nearest neighbours, then a convolution at twice the size
            reach = -(-(reach + 1) // 2)
        reach += RESNET * len(block.resnets)
        reaches.append(reach)
    return reaches[::-1]


def _cropped(
    x: Tensor,
    have: tuple[Span, ...],
    tile: tuple[Span, Span],
    size: Sequence[int],
    scale: int,
    reach: int,
) -> tuple[Tensor, tuple[Span, ...]]:
    """`x`, which covers `have`, cut to the tile and `reach` pixels around it, as far as the frame goes."""
    wanted = tuple(
        Span(max(span.begin * scale - reach, 0), min(span.end * scale + reach, length * scale))
        for span, length in zip(tile, size)
    )
    h, w = (span.within(outer) for span, outer in zip(wanted, have))
    return x[..., h, w], wanted


def _causal(convolution: Any, x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """A causal convolution over `x` after the frames `seen`; its output and what it has seen now."""
    kept = x[:, :, -2:].clone()
    if kept.shape[2] < 2 and seen is not None:
        kept = torch.cat((seen[:, :, -1:], kept), dim=2)
    return convolution(x, seen), kept


def _folded(x: Tensor, patch: int) -> Tensor:
    """`[B, 3, F, p h, p w]` -> `[B, 3 p p, F, h, w]`, as diffusers does."""
    return F.pixel_unshuffle(x.transpose(1, 2).mT, patch).mT.transpose(1, 2)


def _unfolded(x: Tensor, patch: int) -> Tensor:
    """The inverse of `_folded`."""
    return F.pixel_shuffle(x.transpose(1, 2).mT, patch).mT.transpose(1, 2)
