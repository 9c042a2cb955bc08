"""What the note of each workflow tells the artist."""

from __future__ import annotations

from uniavgen_core.embedded import NOTICE, words

RELEASED_START = """\
# UniAVGen: {title}

**Before the first run** put these into ComfyUI's `models` folder and press R:

- `diffusion_models/UniAVGen/` - the folder of shards from huggingface.co/MCG-NJU/UniAVGen (14 GB in bf16)
- `vae/wan2.2_vae.safetensors` and `text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors` - the nodes carry \
the download links
- `vae/qwen2.5_omni_bigvgan.safetensors` - the vocoder, cut from Qwen/Qwen2.5-Omni-7B with \
`uniavgen convert`. Without it choose Griffin-Lim in Load Vocoder: no file, metallic sound.

"""

EMBEDDED_START = """\
# UniAVGen: {title} (embedded model)

Press Run: no download, no graphics card; a clip takes less than a minute on a CPU. This is **{notice}**. It \
animates drawn people such as the one that comes with it, and knows no photographs. For real people open the \
workflow of the same name without *embedded*.

"""

_RELEASED_SLIDERS = """
## Sliders
- **s_v** - how strongly the picture follows words, caption and sound. 3 is the default. Lips drift: up. \
Stiff or burnt: down.
- **s_a** - the same for the sound. 2 is the default. Mumbled: up. Harsh: down.
- **steps** - 50 is the default, 25 shows where it goes in half the time.
- **seed** - another seed is another take.

Turn a slider and press Run again: only the sampler and what follows runs again, the encoders stay cached.

## Cost
Time grows with the steps, a little faster than the length, and about fivefold from 384 to 736 pixels on the \
short side. Try at 384, finish at 736.
"""

_EMBEDDED_SLIDERS = """
## Sliders
- **s_v** - how strongly the picture follows words, caption and sound: at 1 the lips move by themselves, too \
high overshoots. **s_a** - the same for the sound.
- **steps**, **interval** and **shift** stand where this model does best.
- **seed** - another seed is another take.

Turn a slider and press Run again: only the sampler and what follows runs again, the encoders stay cached.

## Words and captions
It can say sentences of 2 to 5 words in 2 seconds, of these words: {words}.

It learnt captions of one form: *an old man with curly grey hair, a beard and glasses nods while speaking, \
looking sad, by the sea*. Keep the first part true to the picture; change how the head moves (nods, sways, \
looks around, tilts the head, holds still) and the mood. A head that moves much smears. Size and \
length stay at 128 pixels and 33 frames.
"""

TITLES = {
    "joint": "Joint",
    "reference_voice": "Reference Voice",
    "continuation": "Continuation",
    "dubbing": "Dubbing",
    "audio_driven": "Audio-Driven",
    "advanced": "Advanced",
    "guidance_grid": "Guidance Grid",
}

NOTES = {
    "joint": """\
## What it does
A picture of a person and a line to say become a clip of that person saying it, sound and picture together.

## What to set
1. The picture: face clearly visible, looking about at the camera.
2. The caption: who and where, the mood. Not the words.
3. The words, in Speech Encode. 81 frames are 5 seconds: about 75 letters of English or 20 Chinese characters.
""",
    "reference_voice": """\
## What it does
As Joint, but spoken in the voice of a recording.

## What to set
1. The picture, the caption and the words.
2. The voice: 3 to 10 seconds of one person, no music.
3. **transcript** in Speech Encode: the exact words of that recording; the task cannot do without.
""",
    "continuation": """\
## What it does
Goes on from a clip: its frames and its sound come first, unchanged, then the model continues both.

## What to set
1. The video, with its sound. It is resampled to 16 frames a second.
2. The words of the **whole** clip: those already said, then the new ones.
3. **frames** in Continuation: the length of the whole clip, the beginning included. Longer than the \
beginning.
""",
    "dubbing": """\
## What it does
Gives a silent or foreign clip a voice. The picture comes back unchanged, the sound is made to fit the lips.

## What to set
1. The video. It is resampled to 16 frames a second; its own sound is not used.
2. The words. They have to fit the length of the clip and should fit the lips.
3. For a certain voice connect a UniAVGen Mel Encode to **reference_voice** and write its words into \
**transcript** of Speech Encode.
""",
    "audio_driven": """\
## What it does
Gives a recording a face: the person of the picture speaks it. The clip is as long as the recording.

## What to set
1. The picture and the caption.
2. The recording: one voice, no music.
3. The words of the recording, in Speech Encode.
""",
    "advanced": """\
## What it does
Joint again, with the sampler in pieces: guider, noise, solver, schedule. Any other task node fits as well.

## What to set
- **KSamplerSelect**: euler is what the model was tuned with. dpmpp_2m and uni_pc also work and can do with \
fewer steps.
- **UniAVGen Scheduler**: the model's own schedule. Any other SIGMAS will do.
- LoRA loaders and torch.compile go between the model and the guider.
- **UniAVGen Face Mask** shows where the model sees the face. If it misses the mouth, lips and voice cannot \
agree: take a picture with a larger or clearer face.
""",
    "guidance_grid": """\
## What it does
The same clip for every pair of s_v and s_a, from one seed: one sheet with labels, and every clip with its \
sound. Use it once for a new picture or voice, then take the best pair to the other workflows.

## What to set
- **s_v** and **s_a** in Guidance Grid: numbers with commas. s_v goes across, s_a goes down.
- The clips are saved row by row: with 1, 3, 5 across, clips 1 to 3 are the first row.

Every pair is one whole run: 3 x 2 pairs take six times as long as one clip.
""",
}


# what the embedded workflow does otherwise than the released one
EMBEDDED_NOTES = {
    "joint": """\
## What it does
The drawn person says a line, sound and picture made together.

## What to set
1. The words, in Speech Encode.
2. The caption: who and where, and how the head moves.
""",
    "reference_voice": """\
## What it does
As Joint, but spoken in the voice of a recording, which is made on the spot.

## What to set
1. The words, and the caption.
2. Another voice: a recording of one person, connected to Mel Encode, with its exact words in \
**transcript** of Speech Encode.
""",
    "continuation": """\
## What it does
Goes on from the beginning of a recording, which is made on the spot: its frames and its sound come first, \
unchanged, then the model continues both.

## What to set
1. The words of the **whole** clip: those already said, then the new ones.
2. The length of the beginning, in Get Image from Batch: 4n + 1 frames.
""",
    "dubbing": """\
## What it does
Gives a clip, which is made on the spot, a new voice. The picture comes back unchanged, the sound is made to \
fit the lips.

## What to set
1. The words. They should fit the lips.
2. For a certain voice connect a UniAVGen Mel Encode to **reference_voice** and write its words into \
**transcript** of Speech Encode.
""",
    "audio_driven": """\
## What it does
Gives a recording, which is made on the spot, a face: the drawn person speaks it.

## What to set
1. The words of the recording, in Speech Encode, and the caption.
2. A recording of your own: one voice, no music.
""",
    "advanced": NOTES["advanced"],
    "guidance_grid": NOTES["guidance_grid"].replace("with 1, 3, 5 across", "with 1, 2, 4 across"),
}


def note(name: str, embedded: bool) -> str:
    if not embedded:
        sliders = "" if name == "guidance_grid" else _RELEASED_SLIDERS
        return RELEASED_START.format(title=TITLES[name]) + NOTES[name] + sliders
    sliders = _EMBEDDED_SLIDERS.format(words=", ".join(sorted(words(), key=str.lower)))
    start = EMBEDDED_START.format(title=TITLES[name], notice=NOTICE)
    return start + EMBEDDED_NOTES[name] + ("" if name == "guidance_grid" else sliders)
