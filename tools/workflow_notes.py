"""What the note of each workflow tells the artist, in a heading and at most five lines."""

from __future__ import annotations

TITLES = {
    "joint": "Image and words",
    "reference_voice": "In the voice of a recording",
    "continuation": "Continue a video",
    "dubbing": "Dub a video",
    "audio_driven": "A face for recorded speech",
    "edit": "Other words in a part",
    "guidance_grid": "Compare s_v and s_a",
    "long_speech": "A script, sentence after sentence",
    "upscaled": "Larger, 24 frames a second",
    "face_mask": "Where the model sees the face",
    "several_takes": "Several takes, choose one",
    "who_speaks": "Two people, who speaks",
    "advanced": "All stages, to rewire",
}

WEIGHTS = (
    "**Weights, once (about 30 GB)**, in the folder of ComfyUI: `hf download MCG-NJU/UniAVGen --local-dir "
    "UniAVGen`, then `python custom_nodes/ComfyUI-UniAVGen/uniavgen_core convert UniAVGen --comfyui models "
    "--dtype fp8`, "
    "then press R."
)
PUPPET = "Needs no download; a small puppet model, trained on drawn faces and 72 words, not the 7 B model."
PUPPET_AND_FILE = (
    "A small puppet model, trained on drawn faces and 72 words, not the 7 B model. The interpolation is one "
    "file, 69 MB: the page lists it where it is missing."
)
PUPPET_WORDS = "Sentences of 2 to 5 words in 2 s; the words it knows are on the help page of Puppet."
TAKE = "Another **seed** is another take. Steps and size are inside the node."

# of the released model, of the embedded one
LINES = {
    "joint": [
        ["**words**: what is said, 75 letters in 5 s. **caption**: who, where, mood.", TAKE],
        ["**words**: what is said. **caption**: what is seen, true to the image.", PUPPET_WORDS, TAKE],
    ],
    "reference_voice": [
        [
            "**Voice**: 3 to 10 s of one person, no music.",
            "**words**: what is said. **words of the voice**: exactly those of the recording.",
            TAKE,
        ],
        [
            "**words**: what is said. **words of the voice**: exactly those of the recording.",
            PUPPET_WORDS,
            TAKE,
        ],
    ],
    "continuation": [
        [
            "The **frames to keep** and their audio stay as they are.",
            "**words**: those of the **whole** clip. **caption**: what is seen.",
            "The length is that of the whole clip too.",
        ],
        [
            "The **frames to keep** and their audio stay as they are.",
            "**words**: those of the **whole** clip. **caption**: what is seen.",
            PUPPET_WORDS,
        ],
    ],
    "dubbing": [
        [
            "The video stays as it is, at 16 frames a second; its own audio is not used.",
            "**words**: those that fit the lips. **caption**: what is seen.",
            TAKE,
        ],
        ["The video stays as it is. **words**: those that fit the lips.", PUPPET_WORDS, TAKE],
    ],
    "audio_driven": [
        [
            "**Speech**: one voice, no music; the clip is as long.",
            "**words**: those of the speech. **caption**: what is seen.",
            TAKE,
        ],
        [
            "The audio stays as it is. **words**: those of the speech. **caption**: what is seen.",
            PUPPET_WORDS,
            TAKE,
        ],
    ],
    "edit": [
        [
            "**From second** .. **to second** is made anew; everything else stays.",
            "**words**: those of the **whole** clip, the new ones in place. **caption**: what is seen.",
            TAKE,
        ],
        [
            "**From second** .. **to second** is made anew; everything else stays.",
            "**words**: those of the **whole** clip, the new ones in place. **caption**: what is seen.",
            PUPPET_WORDS,
        ],
    ],
    "long_speech": [
        [
            "The script: **one sentence a line**, up to 65 letters each. **caption**: what is seen.",
            "A line may have a caption of its own: `sentence | caption`.",
            "Change a line: it and what follows are made anew, nothing before it.",
        ],
        [
            "The script: **one sentence a line**. **caption**: what is seen, true to the image.",
            "Change a line: it and what follows are made anew, nothing before it.",
            PUPPET_WORDS,
        ],
    ],
    "guidance_grid": 2
    * [
        [
            "One run for every pair: **s_v** across, **s_a** down, numbers with commas.",
            "You get a sheet with labels, and every clip with its audio.",
            "Take the best pair to the other templates.",
        ]
    ],
    "upscaled": [
        [
            "Made 384 pixels wide or high, VAE Decode in **tiles**; an upscaler doubles it.",
            "Three frames for one, every second kept: **24 a second**, lips in time with the audio.",
            "Two more files, 136 MB; the page lists what is missing. Some 12 GB of memory.",
        ],
        [
            "VAE Decode in **tiles**; every frame 4 times larger.",
            "Three frames for one, every second kept: **24 a second**, lips in time with the audio.",
        ],
    ],
    "face_mask": 2
    * [
        [
            "The second video shows where audio and video look at each other: the predicted face.",
            "If the mask misses the mouth, take an image with a larger face.",
            TAKE,
        ]
    ],
    "several_takes": 2
    * [
        [
            "**takes** clips of the same words; they differ in their noise, from **seed** on.",
            "The sheet has a row of frames for each take, with its number.",
            "**take** is that number: change it and run again, only that take is decoded, and saved.",
        ]
    ],
    "who_speaks": [
        [
            "Right click the picture, **Open in MaskEditor**, paint over the face that speaks.",
            "**words**: what is said. **caption**: both people.",
            TAKE,
        ],
        [
            "**Who speaks**: 0 is the left puppet, 128 the right one; the audio moves that face.",
            PUPPET_WORDS,
            "The model was trained with one face; the other one stays mostly still.",
        ],
    ],
    "advanced": 2
    * [
        [
            "A node for each stage; the arrow on its title opens it. Any task fits in place of Joint.",
            "LoRA and compile go after the model.",
            "Sampler: **euler**, with the steps set here; others at few steps smear.",
        ]
    ],
}


def note(name: str, embedded: bool) -> str:
    puppet = PUPPET_AND_FILE if name == "upscaled" else PUPPET
    lines = [puppet if embedded else WEIGHTS, *LINES[name][embedded]]
    return "\n".join([f"### {TITLES[name]}", *(f"- {line}" for line in lines)]) + "\n"
