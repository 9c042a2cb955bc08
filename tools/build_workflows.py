"""Writes the workflows, their API twins, English names and help tables: `python tools/build_workflows.py`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import help_pages  # noqa: E402
from workflow_graph import GOLDEN, Graph, Link, Node, Subgraph  # noqa: E402
from workflow_notes import note  # noqa: E402

from uniavgen_core import embedded as embedded_model  # noqa: E402
from uniavgen_core.sampling.defaults import SamplingDefaults  # noqa: E402

WORKFLOWS = ROOT / "workflows"
SUBGRAPHS = ROOT / "subgraphs"
ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"

HUB = "https://huggingface.co/Comfy-Org"
VAE = {
    "name": "wan2.2_vae.safetensors",
    "url": f"{HUB}/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/vae/wan2.2_vae.safetensors",
    "directory": "vae",
}
TEXT_ENCODER = {
    "name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "url": f"{HUB}/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/"
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "directory": "text_encoders",
}
INTERPOLATION = {
    "name": "film_net_fp16.safetensors",
    "url": f"{HUB}/frame_interpolation/resolve/main/frame_interpolation/film_net_fp16.safetensors",
    "directory": "frame_interpolation",
}
UPSCALER = {
    "name": "RealESRGAN_x4plus.safetensors",
    "url": f"{HUB}/Real-ESRGAN_repackaged/resolve/main/RealESRGAN_x4plus.safetensors",
    "directory": "upscale_models",
}
# as `uniavgen convert --comfyui --dtype fp8` names them
MODEL = "uniavgen_fp8.safetensors"
FILES = {
    "model": MODEL,
    "caption encoder": TEXT_ENCODER["name"],
    "VAE": VAE["name"],
    "vocoder": "qwen2.5_omni_bigvgan.safetensors",
}

CAPTION = "A person in an orange suit talks to the camera."
LINE = "Hello from the workshop, it is good to see you."
VOICE_LINE = "This is how I sound when I read a sentence aloud."
PUPPETS = json.loads((ROOT / "web" / "puppets" / "puppets.json").read_text(encoding="utf-8"))
WOMAN, OTHER = PUPPETS["woman"], "old man"
PUPPET_LINE = "Hello, show me the moon."
# the recording with its last word changed, released and embedded
EDITED = ("This is how I sound when I read a sentence again.", "we bring my flower")
# a script, released and embedded
SCRIPTS = (
    "Hello from the workshop, it is good to see you.\nToday I will show you how a clip grows.\n"
    "Every line of this text is a part of its own.\nChange one, and what follows is made again.",
    "hello show me the moon\nthe old bird sings tonight\nthanks bring me the bread",
)
BEGINNING = 17  # frames of the recording that a continuation keeps
MODES = ("joint", "reference_voice", "continuation", "dubbing", "audio_driven", "edit")
OTHERS = ("guidance_grid", "long_speech")
GRID = {False: ("1, 3, 5", "1, 3"), True: ("1, 2, 4", "1, 2")}  # s_v and s_a, by whether embedded

# file names of the templates, in the order of the page: puppets to 19, people from 21
TITLES = {
    "embedded_joint": "01 Start here - talking puppet, runs without a download",
    "embedded_reference_voice": "02 Puppet - in the voice of a recording",
    "embedded_continuation": "03 Puppet - continue a video",
    "embedded_dubbing": "04 Puppet - dub a video",
    "embedded_audio_driven": "05 Puppet - a face for recorded speech",
    "embedded_edit": "06 Puppet - other words in a part",
    "embedded_guidance_grid": "07 Puppet - compare s_v and s_a",
    "embedded_upscaled": "08 Puppet - larger, 24 frames a second",
    "embedded_face_mask": "09 Puppet - where the model sees the face",
    "embedded_long_speech": "10 Puppet - a script, sentence after sentence",
    "embedded_several_takes": "11 Puppet - several takes, choose one",
    "embedded_who_speaks": "12 Puppet - two people, who speaks",
    "embedded_advanced": "19 Puppet - all stages, to rewire",
    "joint": "21 Person - image and words to talking video",
    "reference_voice": "22 Person - in the voice of a recording",
    "continuation": "23 Person - continue a video",
    "dubbing": "24 Person - dub a video",
    "audio_driven": "25 Person - a face for recorded speech",
    "edit": "26 Person - other words in a part",
    "guidance_grid": "27 Person - compare s_v and s_a",
    "upscaled": "28 Person - larger, 24 frames a second",
    "face_mask": "29 Person - where the model sees the face",
    "long_speech": "30 Person - a script, sentence after sentence",
    "several_takes": "31 Person - several takes, choose one",
    "who_speaks": "32 Person - two people, who speaks",
    "advanced": "39 Person - all stages, to rewire",
}
BLUEPRINT_CATEGORY = "Video generation and editing/Talking video"
ALIASES = ["talking head", "lip sync", "avatar", "speech", "audio video", "dub"]
BLUEPRINTS = {
    "joint": (
        "Image and Words to Talking Video",
        "The person of the image says the words; audio and video are made together.",
    ),
    "reference_voice": (
        "Image, Words and Voice to Talking Video",
        "The person of the image says the words in the voice of a recording.",
    ),
    "continuation": (
        "Continue a Talking Video",
        "Keeps the beginning of a video with its audio and makes what follows.",
    ),
    "dubbing": ("Dub a Video", "The video stays as it is and gets a voice that fits the lips."),
    "audio_driven": (
        "Image and Speech to Talking Video",
        "The person of the image speaks a recording; the audio stays as it is.",
    ),
    "edit": (
        "Change Words in a Talking Video",
        "A range of seconds is made anew with other words; everything else stays as it is.",
    ),
    "long_speech": (
        "Image and Script to Long Talking Video",
        "The person of the image says a script of any length, one sentence a line, without a seam.",
    ),
    "guidance_grid": (
        "Compare Guidance of a Talking Video",
        "One clip for every pair of s_v and s_a: a labelled sheet, and all clips.",
    ),
}
FACE_MASK = (
    "Show the Face Mask of a Talking Video",
    "The person of the image says the words; a second video shows where the model sees the face.",
)
WHO_SPEAKS = (
    "Two People, Who Speaks",
    "Of two people in one image the one under the mask says the words.",
)
TAKES = (
    "Several Takes of a Talking Video",
    "The person of the image says the words several times: takes to choose from.",
)
PICK = ("Pick a Take", "Decodes one of several takes to images, audio and a video.")
TILED = (
    "Image and Words to Talking Video in Tiles",
    "The person of the image says the words; VAE Decode works in tiles, for large videos.",
)
UPSCALED = (
    "Enlarge and Smooth a Talking Video",
    "Enlarges every frame and goes from 16 to 24 frames a second.",
)
TILE = {False: 512, True: 96}  # side of a tile of VAE Decode in pixels, by whether embedded
SHOWN = {("video", "UNIAVGEN_VIDEO"): "encoded video"}  # names of inputs that are not the key
PUPPET_SIDE = 128  # pixels
NOTE_HEIGHT, PICTURE, NODE_HEIGHT, SHEET, SQUARE = 200, 170, 500, 230, 200
TALL = 670  # beside two videos, which the page may show without the room left for them


@dataclass
class Parts:
    """Links to the outputs of the loaders, and what suits the model."""

    model: Link
    speech_encoder: Link
    clip: Link
    vae: Link
    vocoder: Link
    settings: SamplingDefaults
    caption: str
    line: str
    voice_line: str  # the words of the recording

    @property
    def schedule(self) -> dict:
        return {"steps": self.settings.steps, "shift": self.settings.shift}

    @property
    def null_pass(self) -> dict:
        guidance = self.settings.guidance
        return {"interval": guidance.interval, "skip_layer": next(iter(guidance.skip_layers), -1)}

    @property
    def guidance(self) -> dict:
        return {"s_v": self.settings.guidance.s_v, "s_a": self.settings.guidance.s_a}


def loaders(g: Graph, embedded: bool, **names: Link) -> Parts:
    """`names`: where a file name comes from the face of a subgraph."""
    if embedded:
        model = g.add("UniAVGenEmbeddedModel")
        texts = WOMAN["caption"], PUPPET_LINE, WOMAN["words"]
        return Parts(*((model, slot) for slot in range(5)), embedded_model.settings(), *texts)
    files = FILES | names
    model = g.add("UniAVGenLoadModel", model_name=files["model"])
    clip = g.add(
        "CLIPLoader", "Caption encoder", models=[TEXT_ENCODER], clip_name=files["caption encoder"], type="wan"
    )
    vae = g.add("VAELoader", "VAE", models=[VAE], vae_name=files["VAE"])
    vocoder = g.add("UniAVGenLoadVocoder", vocoder_name=files["vocoder"])
    links = (model, 0), (model, 1), (clip, 0), (vae, 0), (vocoder, 0)
    return Parts(*links, SamplingDefaults(), CAPTION, LINE, VOICE_LINE)


def captions(g: Graph, p: Parts, caption: str | Link) -> tuple[Node, Node]:
    positive = g.add("CLIPTextEncode", "Caption: what is seen", extra=60, clip=p.clip, text=caption)
    negative = g.add("CLIPTextEncode", "Empty caption (leave empty)", extra=20, clip=p.clip, text="")
    return positive, negative


def speech(g: Graph, p: Parts, words: str | Link, transcript: str | Link) -> Node:
    return g.add(
        "UniAVGenSpeechEncode",
        extra=100,
        speech_encoder=p.speech_encoder,
        text=words,
        transcript=transcript,
    )


def encode_video(g: Graph, p: Parts, image: Link, fps: float | Link = 16.0) -> Node:
    return g.add("UniAVGenVideoEncode", vae=p.vae, image=image, short_side=p.settings.short_side, fps=fps)


def sample(g: Graph, p: Parts, task: Node, steered: Node | None = None, **values) -> Node:
    """`steered`: a node between the task's conditionings and the sampler."""
    return g.add(
        "UniAVGenSampler",
        model=p.model,
        positive=(steered or task, 0),
        negative=(steered or task, 1),
        latent=(task, 2),
        **p.null_pass | p.schedule | values,
    )


def decode(g: Graph, vae: Link, vocoder: Link, latent: Link, tile: int = 0) -> tuple[Node, Node]:
    """Images and audio of a sampled latent, in two columns. `tile`: side in pixels, 0 for no tiles."""
    split = g.add("UniAVGenSplit", latent=latent)
    g.column(260)
    if tile:
        tiles = {"tile_size": tile, "overlap": tile // 4, "temporal_size": 4096, "temporal_overlap": 8}
        images = g.add("VAEDecodeTiled", samples=(split, 0), vae=vae, **tiles)
    else:
        images = g.add("VAEDecode", samples=(split, 0), vae=vae)
    audio = g.add("UniAVGenVocoderDecode", audio=(split, 1), vocoder=vocoder)
    return images, audio


def faces(
    g: Subgraph, p: Parts, mode: str, embedded: bool, pictures: tuple[str, ...] = ("image",), takes: int = 0
) -> dict[str, Link]:
    """What the artist gives, on the face of the subgraph; sockets first. `takes`: 0 for no such input."""
    video = {"continuation": ["video"], "dubbing": ["video"], "edit": ["video"]}
    sockets = {"reference_voice": ["image", "voice"], "audio_driven": ["image", "speech"], **video}
    links = {name: g.face(name) for name in sockets.get(mode, pictures)}
    same = mode in ("continuation", "dubbing", "audio_driven")  # as the recording
    words = EDITED[embedded] if mode == "edit" else p.voice_line if same else p.line
    widgets = {"words": (SCRIPTS[embedded], "one sentence a line") if mode == "long_speech" else (words, "")}
    if mode == "reference_voice":
        widgets["voice_words"] = (PUPPETS[OTHER]["words"] if embedded else p.voice_line, "words of the voice")
    widgets["caption"] = (p.caption, "")
    if mode == "continuation":
        widgets["kept"] = (BEGINNING, "frames to keep (16 a second)")
    if mode == "edit":
        widgets["start"] = (1.1, "from second")
        widgets["end"] = (2.0, "to second")
        widgets["edit"] = ("both", "what is made anew")
    elif mode not in ("dubbing", "audio_driven", "long_speech"):
        widgets["frames"] = (p.settings.frames, "length in frames (16 a second)")
    widgets["seed"] = (2025, "")
    if takes:
        widgets["takes"] = (takes, "takes, from this seed on")
    if mode == "guidance_grid":
        s_v, s_a = GRID[embedded]
        widgets |= {"s_v": (s_v, "s_v, across"), "s_a": (s_a, "s_a, down")}
    else:
        widgets["s_v"] = (p.settings.guidance.s_v, "s_v: how strongly the video follows")
        widgets["s_a"] = (p.settings.guidance.s_a, "s_a: how strongly the audio follows")
    return links | {name: g.face(name, *rest) for name, rest in widgets.items()}


def task(g: Graph, p: Parts, mode: str, given: dict[str, Link]) -> Node:
    """Encoders and the task node, in two columns of groups."""
    fps: float | Link = 16.0
    with g.group("2  Encode", "give"):
        if "video" in given:
            parts = g.add("GetVideoComponents", video=given["video"])
            image, given, fps = (parts, 0), given | {"sound": (parts, 1)}, (parts, 2)
            if "kept" in given:
                kept = g.add(
                    "ImageFromBatch", "The beginning", image=image, batch_index=0, length=given["kept"]
                )
                image = (kept, 0)
        else:
            image = given["image"]
        sound = given.get("sound", given.get("voice", given.get("speech")))
        video = encode_video(g, p, image, fps)
        mel = g.add("UniAVGenMelEncode", audio=sound) if sound and mode != "dubbing" else None
        g.column()
        positive, negative = captions(g, p, given["caption"])
        words = speech(g, p, given["words"], given.get("voice_words", ""))
    links = {
        "positive": (positive, 0),
        "negative": (negative, 0),
        "speech": (words, 0),
        "video": (video, 0),
        **({"takes": given["takes"]} if "takes" in given else {}),
    }
    length = {"frames": given["frames"]} if "frames" in given else {}
    with g.group("3  Task", "task"):
        if mode == "reference_voice":
            return g.add("UniAVGenReferenceVoice", reference_voice=(mel, 0), **length, **links)
        if mode == "continuation":
            return g.add("UniAVGenContinuation", mel=(mel, 0), **length, **links)
        if mode == "dubbing":
            return g.add("UniAVGenDubbing", **links)
        if mode == "edit":
            given_range = {name: given[name] for name in ("start", "end", "edit")}
            return g.add("UniAVGenEdit", mel=(mel, 0), **given_range, **links)
        if mode == "audio_driven":
            return g.add("UniAVGenAudioDriven", mel=(mel, 0), **links)
        return g.add("UniAVGenJoint", **length, **links)


def subgraph(name: str, description: str, embedded: bool, first: int = 101) -> Subgraph:
    """An empty one. `first`: the id of its first node; no two of a workflow may share ids."""
    suffix = "UniAVGen Puppet" if embedded else "UniAVGen"
    return Subgraph(f"{name} ({suffix})", first, BLUEPRINT_CATEGORY, description, ALIASES)


def inside(mode: str, embedded: bool, names: tuple[str, str] | None = None) -> Subgraph:
    """The subgraph that does one mode. `names`: of its variants, such as `TILED`."""
    g = subgraph(*(names or BLUEPRINTS[mode]), embedded)
    with g.group("1  Model", "load"):
        p = loaders(g, embedded)
    if mode == "guidance_grid" and not embedded:
        p.settings = replace(p.settings, short_side=384, frames=49, steps=25)
    if names == TILED and not embedded:
        p.settings = replace(p.settings, short_side=384)
    takes = 0 if names not in (None, TAKES) or mode in OTHERS else 4 if names else 1
    if names == WHO_SPEAKS:
        given = faces(g, p, mode, embedded, ("left", "right") if embedded else ("image", "mask"))
        given |= two_puppets(g, given) if embedded else {}
    else:
        given = faces(g, p, mode, embedded, takes=takes)
    if mode == "long_speech":
        return long_speech(g, p, given)
    prepared = task(g, p, mode, given)
    sliders = {name: given[name] for name in ("seed", "s_v", "s_a")}
    if mode == "guidance_grid":
        with g.group("4  Every pair of s_v and s_a", "sample"):
            grid = g.add(
                "UniAVGenGuidanceGrid",
                model=p.model,
                positive=(prepared, 0),
                negative=(prepared, 1),
                latent=(prepared, 2),
                **sliders | p.null_pass | p.schedule,
            )
        with g.group("5  Decode them all", "out", 200):
            images, audio = decode(g, p.vae, p.vocoder, (grid, 0))
        with g.group("6  One sheet with labels, and the clips", "out", 320):
            sheet = g.add("UniAVGenCompare", images=(images, 0), labels=(grid, 1), columns=(grid, 2))
            video = g.add("CreateVideo", images=(sheet, 0), fps=16.0)
            clips = g.add("UniAVGenMux", images=(images, 0), audio=(audio, 0))
        g.give("sheet", (video, 0))
        g.give("clips", (clips, 0))
        g.preview = grid
        return g
    with g.group("4  Generate", "sample"):
        steered = None
        if names == WHO_SPEAKS:
            texts = {"positive": (prepared, 0), "negative": (prepared, 1)}
            steered = g.add("UniAVGenWhoSpeaks", mask=given["mask"], **texts)
            g.column()
        sampled = sample(g, p, prepared, steered, **sliders)
    with g.group("5  Video", "out", 200):
        images, audio = decode(g, p.vae, p.vocoder, (sampled, 0), TILE[embedded] if names == TILED else 0)
        g.column(320)
        clip = g.add("UniAVGenMux", images=(images, 0), audio=(audio, 0))
    if names == FACE_MASK:
        with g.group("6  Where the model sees the face", "out"):
            face = g.add(
                "UniAVGenFaceMask",
                model=p.model,
                positive=(prepared, 0),
                negative=(prepared, 1),
                latent=(sampled, 0),
                images=(images, 0),
            )
            g.column(320)
            masked = g.add("UniAVGenMux", images=(face, 1), audio=(audio, 0))
    if names == TAKES:
        g.give("latent", (sampled, 0))
        g.give("vae", p.vae)
        g.give("vocoder", p.vocoder)
        g.give("videos", (clip, 0))
        g.preview = sampled
        return g
    g.give("video", (clip, 0))
    g.give("images", (images, 0))
    g.give("audio", (audio, 0))
    if names == FACE_MASK:
        g.give("face mask", (masked, 0))
    g.preview = sampled
    return g


def long_speech(g: Subgraph, p: Parts, given: dict[str, Link]) -> Subgraph:
    """A script on one node, and one that decodes any length to a file."""
    with g.group("2  Encode", "give"):
        video = encode_video(g, p, given["image"])
        positive, negative = captions(g, p, given["caption"])
    with g.group("3  Sentence after sentence", "sample"):
        spoken = g.add(
            "UniAVGenLongSpeech",
            extra=100,
            model=p.model,
            speech_encoder=p.speech_encoder,
            positive=(positive, 0),
            negative=(negative, 0),
            video=(video, 0),
            script=given["words"],
            clip=p.clip,
            **{name: given[name] for name in ("seed", "s_v", "s_a")} | p.null_pass | p.schedule,
        )
    with g.group("4  Video", "out", 320):
        clip = g.add("UniAVGenDecodeToFile", latent=(spoken, 0), vae=p.vae, vocoder=p.vocoder)
    g.give("video", (clip, 0))
    g.preview = spoken
    return g


def sources(g: Graph, mode: str, embedded: bool, picture: int = PICTURE) -> dict[str, Link]:
    """Nodes with the artist's files; `picture` is the height of their preview."""
    if embedded:
        puppet = g.add("UniAVGenPuppet", extra=picture, puppet="woman")
        slots = {"image": 0, "video": 1, "speech": 2}
        if mode == "reference_voice":
            other = g.add("UniAVGenPuppet", "Puppet: the voice", extra=picture, puppet=OTHER)
            return {"image": (puppet, 0), "voice": (other, 2)}
        return {name: (puppet, slot) for name, slot in slots.items()}
    if mode in ("continuation", "dubbing", "edit"):
        return {"video": (g.add("LoadVideo", "Video", extra=picture, file="clip.mp4"), 0)}
    links = {"image": (g.add("LoadImage", "Picture of the person", extra=picture, image="example.png"), 0)}
    if mode == "reference_voice":
        links["voice"] = (g.add("LoadAudio", "Voice", extra=40, audio="voice.wav"), 0)
    if mode == "audio_driven":
        links["speech"] = (g.add("LoadAudio", "Speech", extra=40, audio="voice.wav"), 0)
    return links


def one_clip(mode: str, embedded: bool) -> Graph:
    """Note, files, the subgraph and Save Video, as three columns that fill a small screen."""
    g, core = Graph(), inside(mode, embedded)
    files = mode in ("reference_voice", "audio_driven") and not (embedded and mode == "audio_driven")
    g.place(0, width=340 if files else 400)  # with two files the note stands on the right
    if not files:
        g.note(note(mode, embedded), NOTE_HEIGHT)
    links = sources(g, mode, embedded)
    wanted = {face.name for face in core.faces if face.value is None}
    left = 370 if files else 430
    g.place(left, width=360)
    node = g.add_subgraph(
        core,
        TALL if mode == "guidance_grid" else NODE_HEIGHT,
        BLUEPRINTS[mode][0],
        **{name: link for name, link in links.items() if name in wanted},
    )
    name = f"embedded_{mode}" if embedded else mode
    g.place(left + 390, width=400 if files else 260)
    if files:
        g.note(note(mode, embedded), NOTE_HEIGHT)
        g.narrow(260)
    if mode == "guidance_grid":
        g.narrow(220)
        save(g, (node, 0), name, extra=160)
        save(g, (node, 1), f"{name}_clip", "Save Video: every clip", SQUARE)
    else:
        save(g, (node, 0), name)
    return g


def save(g: Graph, clip: Link, name: str, title: str | None = None, extra: int = 0) -> Node:
    """`extra`: pixels for the video, where another node stands below."""
    return g.add("SaveVideo", title, extra, video=clip, filename_prefix=f"video/uniavgen_{name}")


def face_mask(embedded: bool) -> Graph:
    """Joint with a second video that has the face mask drawn on it."""
    g, core = Graph(), inside("joint", embedded, FACE_MASK)
    name = "embedded_face_mask" if embedded else "face_mask"
    g.place(0, width=400)
    g.note(note("face_mask", embedded), NOTE_HEIGHT)
    image = sources(g, "joint", embedded)["image"]
    g.place(430, width=360)
    node = g.add_subgraph(core, TALL, FACE_MASK[0], image=image)
    g.place(820, width=220)
    save(g, (node, 0), name, extra=SQUARE)
    save(g, (node, 3), f"{name}_mask", "Save Video: face mask", SQUARE)
    return g


def several_takes(embedded: bool) -> Graph:
    """Joint with several takes, a sheet of them, and the one that is chosen."""
    g, core = Graph(), inside("joint", embedded, TAKES)
    name = "embedded_several_takes" if embedded else "several_takes"
    g.place(0, width=300)
    g.note(note("several_takes", embedded), NOTE_HEIGHT if embedded else NOTE_HEIGHT + 30)
    image = sources(g, "joint", embedded)["image"]
    g.place(330, width=340)
    made = g.add_subgraph(core, NODE_HEIGHT, TAKES[0], image=image)
    g.place(720, width=360)
    links = {face: (made, slot) for slot, face in enumerate(("latent", "vae", "vocoder"))}
    picked = g.add_subgraph(decode_stage(embedded, pick=True), 110, "Pick Take", **links)
    g.add("UniAVGenTakesSheet", extra=SHEET, videos=(made, 3))
    g.place(1110, width=230)
    save(g, (picked, 0), name)
    return g


def two_puppets(g: Subgraph, given: dict[str, Link]) -> dict[str, Link]:
    """Two puppets of 128 x 128 pixels side by side, and a mask over one of them."""
    half = PUPPET_SIDE
    x = g.face("speaker", 0, f"who speaks: 0 left, {half} right")
    with g.group("Two in one image, a mask over one", "give"):
        spacing = {"spacing_width": 0, "spacing_color": "white"}
        both = g.add("ImageStitch", image1=given["left"], image2=given["right"], **spacing)
        nobody = g.add("SolidMask", "Nobody", value=0.0, width=2 * half, height=half)
        one = g.add("SolidMask", "One of them", value=1.0, width=half, height=half)
        g.column()
        mask = g.add("MaskComposite", destination=(nobody, 0), source=(one, 0), x=x, y=0, operation="add")
    return {"image": (both, 0), "mask": (mask, 0)}


def who_speaks(embedded: bool) -> Graph:
    """Joint with two people in the image, of whom one speaks."""
    g, core = Graph(), inside("joint", embedded, WHO_SPEAKS)
    name = "embedded_who_speaks" if embedded else "who_speaks"
    g.place(0, width=340 if embedded else 400)
    if embedded:
        left = g.add("UniAVGenPuppet", "Puppet on the left", extra=PICTURE, puppet="woman")
        right = g.add("UniAVGenPuppet", "Puppet on the right", extra=PICTURE, puppet="man")
        links = {"left": (left, 0), "right": (right, 0)}
    else:
        g.note(note("who_speaks", embedded), NOTE_HEIGHT)
        two = g.add("LoadImage", "Two people, mask over one", extra=PICTURE, image="example.png")
        links = {"image": (two, 0), "mask": (two, 1)}
    start = 370 if embedded else 430
    g.place(start, width=360)
    node = g.add_subgraph(core, NODE_HEIGHT, WHO_SPEAKS[0], **links)
    g.place(start + 390, width=400 if embedded else 260)
    if embedded:
        g.note(note("who_speaks", embedded), NOTE_HEIGHT)
        g.narrow(260)
    save(g, (node, 0), name)
    return g


def enlarge(embedded: bool) -> Subgraph:
    """Frames at 16 fps to larger ones at 24: three times as many by interpolation, every second is kept."""
    g = subgraph(*UPSCALED, embedded, 201)
    frames, audio = g.face("images"), g.face("audio")
    if embedded:
        factor = g.face("scale_by", 4.0, "times larger")
        with g.group("1  Enlarge", "load"):
            large = g.add("ImageScaleBy", image=frames, upscale_method="lanczos", scale_by=factor)
    else:
        factor = g.face("scale_by", 0.5, "scale after the 4 times")
        with g.group("1  Enlarge", "load"):
            upscaler = g.add("UpscaleModelLoader", models=[UPSCALER], model_name=UPSCALER["name"])
            larger = g.add("ImageUpscaleWithModel", upscale_model=(upscaler, 0), image=frames)
            g.column()
            large = g.add("ImageScaleBy", image=(larger, 0), upscale_method="lanczos", scale_by=factor)
    with g.group("2  Three times as many frames", "task"):
        model = g.add(
            "FrameInterpolationModelLoader", models=[INTERPOLATION], model_name=INTERPOLATION["name"]
        )
        g.column()
        many = g.add("FrameInterpolate", interp_model=(model, 0), images=(large, 0), multiplier=3)
    with g.group("3  Keep every second", "sample", 240):
        pairs = g.add("RebatchImages", "Pairs", images=(many, 0), batch_size=2)
        g.column(240)
        first = g.add("ImageFromBatch", "First of each", image=(pairs, 0), batch_index=0, length=1)
        g.column(240)
        whole = g.add("RebatchImages", "One clip again", images=(first, 0), batch_size=4096)
    with g.group("4  Video", "out", 320):
        clip = g.add("UniAVGenMux", images=(whole, 0), audio=audio, fps=24.0)
    g.give("video", (clip, 0))
    return g


def upscaled(embedded: bool) -> Graph:
    """Joint decoded in tiles, then larger and at 24 frames a second, by nodes of the host."""
    g, core, larger = Graph(), inside("joint", embedded, TILED), enlarge(embedded)
    g.place(0, width=320)
    g.note(note("upscaled", embedded), NOTE_HEIGHT)
    image = sources(g, "joint", embedded)["image"]
    g.place(350, width=340)
    made = g.add_subgraph(core, NODE_HEIGHT, "Image and Words to Talking Video", image=image)
    g.place(730, width=270)
    video = g.add_subgraph(larger, 100, "Enlarge and Smooth", images=(made, 1), audio=(made, 2))
    g.place(1040, width=240)
    save(g, (video, 0), "embedded_upscaled" if embedded else "upscaled")
    return g


def model_stage(embedded: bool) -> Subgraph:
    """The four loaders of the released model, file names on the face."""
    g = subgraph("Model", "Loads the model, the caption encoder, the VAE and the vocoder.", embedded)
    names = {name: g.face(name, value) for name, value in FILES.items()}
    with g.group("Model", "load"):
        p = loaders(g, embedded, **names)
    for name in ("model", "speech_encoder", "clip", "vae", "vocoder"):
        g.give(name, getattr(p, name))
    return g


def encode_stage(p: Parts, embedded: bool) -> Subgraph:
    """Image, captions and words, encoded for a task node."""
    g = subgraph("Encode", "Encodes image, caption and words for a task node.", embedded, 201)
    sockets = {name: g.face(name) for name in ("vae", "clip", "speech_encoder", "image")}
    image = sockets.pop("image")
    words, caption = g.face("words", p.line), g.face("caption", p.caption)
    p = replace(p, **sockets)
    with g.group("Encode", "give"):
        video = encode_video(g, p, image)
        positive, negative = captions(g, p, caption)
        g.column()
        text = speech(g, p, words, "")
    given = {"positive": positive, "negative": negative, "speech": text, "encoded video": video}
    for name, node in given.items():
        g.give(name, (node, 0))
    return g


def generate_stage(p: Parts, embedded: bool) -> Subgraph:
    """The sampler in pieces: guider, noise, solver, schedule."""
    g = subgraph("Generate", "UniAVGen Guider with Sampler Custom Advanced.", embedded, 301)
    model, *conditions = (g.face(name) for name in ("model", "positive", "negative", "latent"))
    seed = g.face("seed", 2025)
    scales = {name: g.face(name, value) for name, value in p.guidance.items()}
    solver_name = g.face("sampler_name", "euler")
    schedule = {name: g.face(name, value) for name, value in p.schedule.items()}
    with g.group("Generate", "sample"):
        guider = g.add(
            "UniAVGenGuider",
            model=model,
            positive=conditions[0],
            negative=conditions[1],
            **scales | p.null_pass,
        )
        noise = g.add("RandomNoise", noise_seed=seed)
        solver = g.add("KSamplerSelect", sampler_name=solver_name)
        sigmas = g.add("UniAVGenScheduler", **schedule)
        g.column()
        sampled = g.add(
            "SamplerCustomAdvanced",
            noise=(noise, 0),
            guider=(guider, 0),
            sampler=(solver, 0),
            sigmas=(sigmas, 0),
            latent_image=conditions[2],
        )
    g.give("latent", (sampled, 0))
    g.preview = sampled
    return g


def decode_stage(embedded: bool, pick: bool = False) -> Subgraph:
    """A sampled latent, or one take of it, to images, audio and a video."""
    names = PICK if pick else ("Decode", "Decodes a sampled latent to images, audio and a video.")
    g = subgraph(*names, embedded, 401)
    latent, vae, vocoder = (g.face(name) for name in ("latent", "vae", "vocoder"))
    take = g.face("take", 1, "take: its number on the sheet") if pick else None
    with g.group(names[0], "out", 240):
        if take:
            latent = (g.add("UniAVGenPickTake", latent=latent, take=take), 0)
        images, audio = decode(g, vae, vocoder, latent)
        g.column(240)
        clip = g.add("UniAVGenMux", images=(images, 0), audio=(audio, 0))
    g.give("video", (clip, 0))
    g.give("images", (images, 0))
    g.give("audio", (audio, 0))
    return g


def all_stages(embedded: bool) -> Graph:
    """Joint, one node for each stage; a stage opens into its nodes.

    A link to the next column goes straight, the others run above the nodes.
    """
    g = Graph()
    name = "embedded_advanced" if embedded else "advanced"
    g.place(0, width=296)
    if embedded:
        p = loaders(g, embedded)
    else:
        loaded = g.add_subgraph(model_stage(embedded), 220, "Model")
        links: list[Link] = [(loaded, slot) for slot in range(5)]
        p = Parts(*links, SamplingDefaults(), CAPTION, LINE, VOICE_LINE)
    image = sources(g, "joint", embedded)["image"]
    g.place(334, width=256)
    encode = encode_stage(p, embedded)
    encoded = g.add_subgraph(
        encode, 330, "Encode", vae=p.vae, clip=p.clip, speech_encoder=p.speech_encoder, image=image
    )
    g.place(628, width=190)
    prepared = g.add(
        "UniAVGenJoint",
        **{face: (encoded, slot) for slot, face in enumerate(("positive", "negative", "speech", "video"))},
        frames=p.settings.frames,
    )
    g.place(856, width=246)
    conditions = {face: (prepared, slot) for slot, face in enumerate(("positive", "negative", "latent"))}
    sampled = g.add_subgraph(generate_stage(p, embedded), 290, "Generate", model=p.model, **conditions)
    g.place(1140, width=210)
    decoded = g.add_subgraph(
        decode_stage(embedded), 90, "Decode", latent=(sampled, 0), vae=p.vae, vocoder=p.vocoder
    )
    g.place(1140, 190, width=210)
    saved = save(g, (decoded, 0), name)
    g.place(628, 350, width=474)
    g.note(note("advanced", embedded), NOTE_HEIGHT)
    above = [(sampled, "model"), (decoded, "vae"), (decoded, "vocoder")]
    for at, (node, slot) in enumerate(above):
        height, left = -20 - 16 * at, p.model[0].x + p.model[0].width
        g.route(node, slot, (left + 10 + 6 * at, height), (node.x - 24 + 6 * at, height))
    between = decoded.y + decoded.height + 30
    g.route(saved, "video", (decoded.x + decoded.width + 20, between), (saved.x - 20, between))
    return g


def workflows() -> dict[str, Graph]:
    """Every workflow by the name of its API twin; `TITLES` has the names of the templates."""
    graphs = {}
    for prefix, embedded in (("", False), ("embedded_", True)):
        graphs |= {prefix + mode: one_clip(mode, embedded) for mode in (*MODES, *OTHERS)}
        graphs[f"{prefix}upscaled"] = upscaled(embedded)
        graphs[f"{prefix}face_mask"] = face_mask(embedded)
        graphs[f"{prefix}several_takes"] = several_takes(embedded)
        graphs[f"{prefix}who_speaks"] = who_speaks(embedded)
        graphs[f"{prefix}advanced"] = all_stages(embedded)
    return graphs


def blueprints() -> dict[str, dict]:
    """The subgraphs that the host serves, by file name."""
    subgraphs = [inside(mode, embedded) for embedded in (False, True) for mode in (*MODES, *OTHERS)]
    return {subgraph.name: subgraph.blueprint(NODE_HEIGHT) for subgraph in subgraphs}


def english() -> dict:
    """Names and tooltips of the nodes as their schemas give them."""
    names = {}
    for node, info in json.loads(GOLDEN.read_text(encoding="utf-8")).items():
        slots = {
            key: info["input"][kind][key]
            for kind in ("required", "optional")
            for key in info["input_order"].get(kind, [])
        }
        outputs = enumerate(zip(info["output_name"], info["output_tooltips"]))
        names[node] = {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                key: {"name": SHOWN.get((key, slot[0]), key), "tooltip": slot[1]["tooltip"]}
                for key, slot in slots.items()
            },
            "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in outputs},
        }
    return names


def text(content: dict) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for folder in (WORKFLOWS / "api", SUBGRAPHS):
        folder.mkdir(exist_ok=True)
    for name, graph in workflows().items():
        (WORKFLOWS / f"{TITLES[name]}.json").write_text(text(graph.ui()), encoding="utf-8")
        (WORKFLOWS / "api" / f"{name}.json").write_text(text(graph.api()), encoding="utf-8")
    for name, content in blueprints().items():
        (SUBGRAPHS / f"{name}.json").write_text(text(content), encoding="utf-8")
    ENGLISH.write_text(text(english()), encoding="utf-8")
    help_pages.write()
