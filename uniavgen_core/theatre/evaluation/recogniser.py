"""Which of the theatre's 72 words are heard: a small convolutional CTC network (Graves et al. 2006).

It sees 0.5 s to either side of a moment and no sentence, so that a word counts only where it is heard.
Trained on the theatre's training split, clean and through Griffin-Lim, with its mels disturbed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...atomic import replacing
from ...errors import UserError
from ...media.mel import MEL_BANDS, log_mel
from ...media.vocoder import GriffinLim
from ...training.data import seeded
from ...vocabulary import VOCABULARY, words
from ...weights.write import save_tensors
from ..clips import Theatre

EMBEDDED_FILE = Path(__file__).parents[2] / "embedded_model" / "recogniser.safetensors"
PER_SHARD = 200
VOCODED = 5  # one clip in so many is also kept as Griffin-Lim gives it back
NEVER = -30.0  # the logit of a word in silence
AUDIBLE = 3.0  # nats below them: where no cell is louder, there is no word
DYNAMICS = 8.0  # nats below the clip's loudest cells that are looked at
_NUMBER = {word: i + 1 for i, word in enumerate(VOCABULARY)}  # 0 is the blank


class _Block(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, 5, padding=2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.wide, self.back = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)  # [B, T, dim]
        return x + self.back(F.gelu(self.wide(self.norm(y))))


class Recogniser(nn.Module):
    """log_mel `[B, 80, L]` -> log probabilities `[B, L / 4, 73]` of blank and words, at any level."""

    def __init__(self, dim: int = 128, layers: int = 6):
        super().__init__()
        self.config = {"dim": dim, "layers": layers}
        self.stem = nn.Conv1d(MEL_BANDS, dim, 5, stride=2, padding=2)
        self.reduce = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(_Block(dim) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(VOCABULARY) + 1))

    def forward(self, log_mel: Tensor) -> Tensor:
        loudest = log_mel.flatten(1).quantile(0.99, dim=1)[:, None, None]
        level = (log_mel - loudest).clamp(min=-DYNAMICS)
        x = self.reduce(F.gelu(self.stem(1 + level / (DYNAMICS / 2)))).transpose(1, 2)  # [B, L / 4, dim]
        x = self.head(self.blocks(x))
        heard = F.max_pool1d(level.amax(1, keepdim=True), 11, stride=4, padding=5)  # [B, 1, L / 4]
        no_word = (heard < -AUDIBLE).transpose(1, 2) & (torch.arange(x.shape[2], device=x.device) > 0)
        return x.masked_fill(no_word, NEVER).log_softmax(-1)

    @torch.inference_mode()
    def transcribe(self, waveform: Tensor) -> list[str]:
        """`[B, n]` at 24 kHz -> the words heard in each (greedy decoding)."""
        best = self(log_mel(waveform)).argmax(-1)  # [B, T]
        texts = []
        for row in best.tolist():
            changes = [number for before, number in zip([0, *row], row) if number not in (0, before)]
            texts.append(" ".join(VOCABULARY[number - 1] for number in changes))
        return texts


def is_known(text: str) -> bool:
    """Whether the recogniser knows every word of a transcript, and there is one."""
    spoken = words(text)
    return bool(spoken) and all(word in _NUMBER for word in spoken)


def word_errors(said: str, heard: str) -> int:
    """Words to insert, delete or replace to get from one text to the other."""
    from torchaudio.functional import edit_distance

    return edit_distance(words(said), words(heard))


def save_recogniser(model: Recogniser, path: Path, about: dict) -> None:
    """Half precision; `about` (JSON-ready) says how it was trained."""
    metadata = {
        "config": json.dumps(model.config),
        "words": json.dumps(VOCABULARY),
        "about": json.dumps(about),
    }
    save_tensors({name: tensor.half() for name, tensor in model.state_dict().items()}, path, metadata)


def load_recogniser(path: str | Path = EMBEDDED_FILE) -> Recogniser:
    """The embedded recogniser, or one from `train_recogniser`.

    Raises:
        UserError: no such file, or it holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        if json.loads(metadata.get("words", "[]")) != VOCABULARY:
            raise UserError(f"{path}: no recogniser of the theatre's {len(VOCABULARY)} words; train one")
        model = Recogniser(**json.loads(metadata["config"]))
        model.load_state_dict(state)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); make it with `uniavgen eval train-recogniser`"
        ) from error
    return model.eval().requires_grad_(False)


def train_recogniser(
    out: str | Path,
    work: str | Path,
    clips: int = 5000,
    steps: int = 2400,
    batch: int = 16,
    seed: int = 0,
    rate: float = 2e-3,
    save_every: int = 200,
    judged: int = 256,
    on_progress: Callable[[str, int, int], None] = lambda what, done, count: None,
) -> dict:
    """Train a recogniser; called again with the same folder `work` it goes on where it was stopped.

    Returns what is stored with the weights: how it was trained and its word error rates on `judged` clips of
    the held-out split, as they are and through Griffin-Lim.

    Raises:
        UserError: espeak-ng or torchaudio is missing.
    """
    out, work = Path(out), Path(work)
    work.mkdir(parents=True, exist_ok=True)
    clean, vocoded, texts = _corpus(work, Theatre(seed, "train"), clips, on_progress)
    torch.manual_seed(seed)
    model = Recogniser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    checkpoint, first = work / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        generator = seeded(seed, "recogniser", step)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        chosen = torch.randint(clips, (batch,), generator=generator)
        third = batch // 3
        chosen[:third] = chosen[:third] // VOCODED * VOCODED
        mels = torch.cat((vocoded[chosen[:third] // VOCODED], clean[chosen[third:]])).float()
        loss = _ctc(model(disturbed(mels, generator)), [texts[i] for i in chosen.tolist()])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_progress(f"loss {loss.item():.3f}", step + 1, steps)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            with replacing(checkpoint) as part:
                torch.save(state, part)
    model.eval()
    about = {"clips": clips, "steps": steps, "batch": batch, "seed": seed}
    about |= held_out_errors(model, judged, partial(on_progress, "test"))
    save_recogniser(model, out, about)
    return about


def held_out_errors(model: Recogniser, clips: int, on_clip: Callable[[int, int], None]) -> dict[str, float]:
    """Word error rates on held-out recordings, as they are ("true") and from their mels ("griffin_lim")."""
    theatre, vocoder, per_batch = Theatre(0, "held-out"), GriffinLim(), 16
    wrong, count = {"true": 0, "griffin_lim": 0}, 0
    for start in range(0, clips, per_batch):
        said = [theatre.speech(i) for i in range(start, min(clips, start + per_batch))]
        waveform = torch.stack([torch.from_numpy(speech.waveform) for speech in said])
        for name, sound in (("true", waveform), ("griffin_lim", vocoder(log_mel(waveform)))):
            heard = model.transcribe(sound)
            wrong[name] += sum(word_errors(s.transcript, h) for s, h in zip(said, heard))
        count += sum(len(words(s.transcript)) for s in said)
        on_clip(min(clips, start + per_batch), clips)
    return {f"word_error_{name}": round(errors / count, 4) for name, errors in wrong.items()}


def disturbed(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Mels `[B, 80, L]` with other tempo, formants, tilt, blur, noise and holes; the length may change."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    # Silence of any length at both ends, so that a clip's edges tell nothing of its words.
    floor = mel.amin().item()
    mel = F.pad(mel, [int(n) for n in torch.randint(24, (2,), generator=generator)], value=floor)
    count, bands, length = mel.shape
    stretched = (round(bands * uniform(0.94, 1.06).item()), round(length * uniform(0.85, 1.15).item()))
    mel = F.interpolate(mel[:, None], stretched, mode="bilinear")[:, 0]
    mel = F.pad(mel, (0, 0, 0, max(0, bands - stretched[0])), value=floor)[:, :bands]
    length = mel.shape[2]
    if uniform(0, 1) < 0.5:  # as smooth as the mels of a model that is unsure
        rows, columns = (2 * int(torch.randint(2, (), generator=generator)) + 1 for _ in range(2))
        mel = F.avg_pool2d(
            mel[:, None], (rows, columns), 1, (rows // 2, columns // 2), count_include_pad=False
        )
        mel = mel[:, 0]
    mel = mel + uniform(-1, 1, count, 1, 1) * torch.linspace(-1, 1, bands)[:, None]
    hiss = mel.amax((1, 2), keepdim=True) - uniform(4.5, 12, count, 1, 1)
    hiss = hiss + uniform(-1, 1, count, 1, 1) * torch.linspace(-1, 1, bands)[:, None]
    mel = torch.logaddexp(mel, hiss + 0.4 * noise(mel)) + uniform(0, 0.5, count, 1, 1) * noise(mel)
    for axis, size, widest in ((1, bands, 8), (2, length, 8)):
        start, width = uniform(0, size, count, 1, 1), uniform(0, widest, count, 1, 1)
        place = torch.arange(size).view(1, -1, 1) if axis == 1 else torch.arange(size).view(1, 1, -1)
        mel = torch.where((place >= start) & (place < start + width), hiss.mean(1, keepdim=True), mel)
    return mel


def _ctc(log_probabilities: Tensor, texts: list[str]) -> Tensor:
    numbers = [[_NUMBER[word] for word in words(text)] for text in texts]
    batch, length = log_probabilities.shape[:2]
    return F.ctc_loss(
        log_probabilities.transpose(0, 1),
        torch.tensor([number for row in numbers for number in row]),
        torch.full((batch,), length),
        torch.tensor([len(row) for row in numbers]),
        zero_infinity=True,
    )


def _corpus(
    work: Path, theatre: Theatre, clips: int, on_progress: Callable[[str, int, int], None]
) -> tuple[Tensor, Tensor, list[str]]:
    """Mels of `clips` recordings `[N, 80, L]`, of every fifth through Griffin-Lim, and what is said."""
    vocoder, clean, vocoded, texts = GriffinLim(), [], [], []
    for start in range(0, clips, PER_SHARD):
        end = min(clips, start + PER_SHARD)
        path = work / f"{start:06d}-{end:06d}.safetensors"
        if not path.exists():
            said = [theatre.speech(i) for i in range(start, end)]
            mels = log_mel(torch.stack([torch.from_numpy(speech.waveform) for speech in said]))
            again = torch.cat([log_mel(vocoder(part)) for part in mels[::VOCODED].split(10)])
            tensors = {"clean": mels.half(), "vocoded": again.half()}
            save_tensors(tensors, path, {"texts": json.dumps([speech.transcript for speech in said])})
        with safe_open(path, "pt") as file:
            clean.append(file.get_tensor("clean"))
            vocoded.append(file.get_tensor("vocoded"))
            texts += json.loads(file.metadata()["texts"])
        on_progress("recordings", end, clips)
    return torch.cat(clean), torch.cat(vocoded), texts
