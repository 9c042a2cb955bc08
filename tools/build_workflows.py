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
# as `uniavgen convert --comfyui --dtype fp8` names them
MODEL = "uniavgen_fp8.safetensors"
VOCODER = "qwen2.5_omni_bigvgan.safetensors"

CAPTION = "A person in an orange suit talks to the camera."
LINE = "Hello from the workshop, it is good to see you."
VOICE_LINE = "This is how I sound when I read a sentence aloud."
PUPPETS = json.loads((ROOT / "web" / "puppets" / "puppets.json").read_text(encoding="utf-8"))
WOMAN, OTHER = PUPPETS["woman"], "old man"
PUPPET_LINE = "Hello, show me the moon."
# the recording with its last word changed, released and embedded
EDITED = ("This is how I sound when I read a sentence again.", "we bring my flower")
BEGINNING = 17  # frames of the recording that a continuation keeps
MODES = ("joint", "reference_voice", "continuation", "dubbing", "audio_driven", "edit")
GRID = {False: ("1, 3, 5", "1, 3"), True: ("1, 2, 4", "1, 2")}  # s_v and s_a, by whether embedded

# file names of the templates: what the page shows, in this order where it sorts; puppets to 19, people from 21
TITLES = {
    "embedded_joint": "01 Start here - talking puppet, runs without a download",
    "embedded_reference_voice": "02 Puppet - in the voice of a recording",
    "embedded_continuation": "03 Puppet - continue a video",
    "embedded_dubbing": "04 Puppet - dub a video",
    "embedded_audio_driven": "05 Puppet - a face for recorded speech",
    "embedded_edit": "06 Puppet - other words in a part",
    "embedded_guidance_grid": "07 Puppet - compare s_v and s_a",
    "embedded_advanced": "19 Puppet - all stages, to rewire",
    "joint": "21 Person - image and words to talking video",
    "reference_voice": "22 Person - in the voice of a recording",
    "continuation": "23 Person - continue a video",
    "dubbing": "24 Person - dub a video",
    "audio_driven": "25 Person - a face for recorded speech",
    "edit": "26 Person - other words in a part",
    "guidance_grid": "27 Person - compare s_v and s_a",
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
    "guidance_grid": (
        "Compare Guidance of a Talking Video",
        "One clip for every pair of s_v and s_a: a labelled sheet, and all clips.",
    ),
}
NOTE_HEIGHT, PICTURE, NODE_HEIGHT = 200, 170, 500


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


def loaders(g: Graph, embedded: bool) -> Parts:
    if embedded:
        model = g.add("UniAVGenEmbeddedModel")
        texts = WOMAN["caption"], PUPPET_LINE, WOMAN["words"]
        return Parts(*((model, slot) for slot in range(5)), embedded_model.settings(), *texts)
    model = g.add("UniAVGenLoadModel", model_name=MODEL)
    clip = g.add(
        "CLIPLoader", "Caption encoder", models=[TEXT_ENCODER], clip_name=TEXT_ENCODER["name"], type="wan"
    )
    vae = g.add("VAELoader", "VAE", models=[VAE], vae_name=VAE["name"])
    vocoder = g.add("UniAVGenLoadVocoder", vocoder_name=VOCODER)
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


def sample(g: Graph, p: Parts, task: Node, **values) -> Node:
    return g.add(
        "UniAVGenSampler",
        model=p.model,
        positive=(task, 0),
        negative=(task, 1),
        latent=(task, 2),
        **p.null_pass | p.schedule | values,
    )


def decode(g: Graph, p: Parts, sampled: Node) -> tuple[Node, Node]:
    """Images and audio of a sampled latent, in two columns."""
    split = g.add("UniAVGenSplit", latent=(sampled, 0))
    g.column(260)
    images = g.add("VAEDecode", samples=(split, 0), vae=p.vae)
    audio = g.add("UniAVGenVocoderDecode", audio=(split, 1), vocoder=p.vocoder)
    return images, audio


def faces(g: Subgraph, p: Parts, mode: str, embedded: bool) -> dict[str, Link]:
    """What the artist gives, on the face of the subgraph; sockets first."""
    video = {"continuation": ["video"], "dubbing": ["video"], "edit": ["video"]}
    sockets = {"reference_voice": ["image", "voice"], "audio_driven": ["image", "speech"], **video}
    links = {name: g.face(name) for name in sockets.get(mode, ["image"])}
    same = mode in ("continuation", "dubbing", "audio_driven")  # as the recording
    words = EDITED[embedded] if mode == "edit" else p.voice_line if same else p.line
    widgets = {"words": (words, "")}
    if mode == "reference_voice":
        widgets["voice_words"] = (PUPPETS[OTHER]["words"] if embedded else p.voice_line, "words of the voice")
    widgets["caption"] = (p.caption, "")
    if mode == "continuation":
        widgets["kept"] = (BEGINNING, "frames to keep (16 a second)")
    if mode == "edit":
        widgets["start"] = (1.1, "from second")
        widgets["end"] = (2.0, "to second")
        widgets["edit"] = ("both", "what is made anew")
    elif mode not in ("dubbing", "audio_driven"):
        widgets["frames"] = (p.settings.frames, "length in frames (16 a second)")
    widgets["seed"] = (2025, "")
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


def inside(mode: str, embedded: bool, first: int = 101) -> Subgraph:
    """The subgraph that does one mode."""
    suffix = "UniAVGen Puppet" if embedded else "UniAVGen"
    name, description = BLUEPRINTS[mode]
    g = Subgraph(f"{name} ({suffix})", first, BLUEPRINT_CATEGORY, description, ALIASES)
    with g.group("1  Model", "load"):
        p = loaders(g, embedded)
    if mode == "guidance_grid" and not embedded:
        p.settings = replace(p.settings, short_side=384, frames=49, steps=25)
    given = faces(g, p, mode, embedded)
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
            images, audio = decode(g, p, grid)
        with g.group("6  One sheet with labels, and the clips", "out", 320):
            sheet = g.add("UniAVGenCompare", images=(images, 0), labels=(grid, 1), columns=(grid, 2))
            video = g.add("CreateVideo", images=(sheet, 0), fps=16.0)
            clips = g.add("UniAVGenMux", images=(images, 0), audio=(audio, 0))
        g.give("sheet", (video, 0))
        g.give("clips", (clips, 0))
        g.preview = grid
        return g
    with g.group("4  Generate", "sample"):
        sampled = sample(g, p, prepared, **sliders)
    with g.group("5  Video", "out", 200):
        images, audio = decode(g, p, sampled)
        g.column(320)
        clip = g.add("UniAVGenMux", images=(images, 0), audio=(audio, 0))
    g.give("video", (clip, 0))
    g.give("images", (images, 0))
    g.give("audio", (audio, 0))
    g.preview = sampled
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
        NODE_HEIGHT,
        BLUEPRINTS[mode][0],
        **{name: link for name, link in links.items() if name in wanted},
    )
    name = f"embedded_{mode}" if embedded else mode
    g.place(left + 390, width=400 if files else 260)
    if files:
        g.note(note(mode, embedded), NOTE_HEIGHT)
        g.narrow(260)
    save(g, (node, 0), name)
    if mode == "guidance_grid":
        save(g, (node, 1), f"{name}_clip")
    return g


def save(g: Graph, clip: Link, name: str) -> None:
    g.add("SaveVideo", video=clip, filename_prefix=f"video/uniavgen_{name}")


def all_stages(embedded: bool) -> Graph:
    """Joint with every stage as a node, the sampler in pieces and the face mask, in two rows.

    A link to the next column goes straight; every other runs in the gaps between columns and rows.
    """
    g = Graph()
    name = "embedded_advanced" if embedded else "advanced"
    g.place(0)
    p = loaders(g, embedded)
    links = sources(g, "joint", embedded, PICTURE if embedded else 110)
    image = links["image"]
    g.box("1  Model and image", "load", 0)
    g.place(400)
    video = encode_video(g, p, image)
    positive, negative = captions(g, p, p.caption)
    words = speech(g, p, p.line, "")
    g.box("2  Encode", "give", 400)
    g.place(800, width=260)
    joint = g.add(
        "UniAVGenJoint",
        positive=(positive, 0),
        negative=(negative, 0),
        speech=(words, 0),
        video=(video, 0),
        frames=p.settings.frames,
    )
    g.box("3  Task", "task", 800)
    g.place(1160)
    guider = g.add(
        "UniAVGenGuider",
        model=p.model,
        positive=(joint, 0),
        negative=(joint, 1),
        **p.guidance | p.null_pass,
    )
    noise = g.add("RandomNoise", noise_seed=2025)
    solver = g.add("KSamplerSelect", sampler_name="euler")
    sigmas = g.add("UniAVGenScheduler", **p.schedule)
    g.box("4  Generate", "sample", 1160, 1560)
    g.place(1560, width=260)
    sampled = g.add(
        "SamplerCustomAdvanced",
        noise=(noise, 0),
        guider=(guider, 0),
        sampler=(solver, 0),
        sigmas=(sigmas, 0),
        latent_image=(joint, 2),
    )
    g.route(guider, "model", above(p.model[0], 50), before(guider, 50))
    g.route(sampled, "latent_image", above(joint, 70), before(sampled, 70))

    top = g.bottom() + 170
    between = top - 140  # the first of the lines between the rows
    g.place(0, top, 400)
    g.note(note("advanced", embedded), NOTE_HEIGHT + 40)
    g.place(490, top, 200)
    split = g.add("UniAVGenSplit", "Split video and audio", latent=(sampled, 0))
    g.place(800, top, 260)
    images = g.add("VAEDecode", samples=(split, 0), vae=p.vae)
    audio = g.add("UniAVGenVocoderDecode", audio=(split, 1), vocoder=p.vocoder)
    g.box("5  Decode", "out", 490, 800, top=top)
    g.place(1160, top)
    face = g.add(
        "UniAVGenFaceMask",
        model=p.model,
        positive=(joint, 0),
        negative=(joint, 1),
        latent=(sampled, 0),
        images=(images, 0),
    )
    g.place(1560, top)
    masked = g.add("UniAVGenMux", "Join: video with the face mask", images=(face, 1), audio=(audio, 0))
    clip = g.add("UniAVGenMux", images=(images, 0), audio=(audio, 0))
    g.place(1960, top)
    save(g, (masked, 0), f"{name}_face")
    save(g, (clip, 0), name)
    g.box("6  Video, and where the model sees the face", "out", 1160, 1560, 1960, top=top)
    routes = [
        (p.vae[0], images, "vae"),
        (p.vocoder[0], audio, "vocoder"),
        (p.model[0], face, "model"),
        (joint, face, "positive"),
        (joint, face, "negative"),
        (sampled, face, "latent"),
        (sampled, split, "latent"),
    ]
    for at, (source, target, slot) in enumerate(routes):
        line, x = between + 14 * at, source.x + source.width + 20 + 6 * at
        bend = (x, source.y + source.height + 60)  # so that the curve down stays in the gap
        g.route(target, slot, bend, (x, line), (target.x - 80 + 6 * at, line))
    for at, (source, target, slot) in enumerate(
        [(images, clip, "images"), (audio, clip, "audio"), (audio, masked, "audio")]
    ):
        line = face.y + face.height + 40 + 14 * at
        g.route(target, slot, (source.x + source.width + 30, line), (target.x - 60 + 8 * at, line))
    return g


def above(node: Node, height: int) -> tuple[int, int]:
    """A point right of a node, `height` above the first row."""
    return node.x + node.width + 30, -height


def before(node: Node, height: int) -> tuple[int, int]:
    """A point left of a node, `height` above the first row."""
    return node.x - 40, -height


def workflows() -> dict[str, Graph]:
    """Every workflow by the name of its API twin; `TITLES` has the names of the templates."""
    graphs = {}
    for prefix, embedded in (("", False), ("embedded_", True)):
        graphs |= {prefix + mode: one_clip(mode, embedded) for mode in (*MODES, "guidance_grid")}
        graphs[f"{prefix}advanced"] = all_stages(embedded)
    return graphs


def blueprints() -> dict[str, dict]:
    """The subgraphs that the host serves, by file name."""
    subgraphs = [inside(mode, embedded) for embedded in (False, True) for mode in (*MODES, "guidance_grid")]
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
            "inputs": {key: {"name": key, "tooltip": slot[1]["tooltip"]} for key, slot in slots.items()},
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
