"""Writes workflows/*.json, their API twins and the English names: `python tools/build_workflows.py`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from workflow_graph import GOLDEN, Graph, Node  # noqa: E402
from workflow_notes import note  # noqa: E402

from uniavgen_core import embedded as embedded_model  # noqa: E402
from uniavgen_core.sampling.sampler import Settings  # noqa: E402

WORKFLOWS = ROOT / "workflows"
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
MODEL = "UniAVGen/"
VOCODER = "qwen2.5_omni_bigvgan.safetensors"

CAPTION = "A person in an orange suit talks to the camera."
LINE = "Hello from the workshop, it is good to see you."
VOICE_LINE = "This is how I sound when I read a sentence aloud."
PUPPET_CAPTION = (
    "a middle-aged woman with black hair in a bun, glasses and earrings holds still while speaking, looking "
    "happy, in a forest"
)
PUPPET_LINE = "Hello, show me the moon."
PUPPET_VOICE_LINE = "The old friend sings today."
BEGINNING = 17  # frames of the recording that a continuation keeps
MODES = ("joint", "reference_voice", "continuation", "dubbing", "audio_driven")


Link = tuple[Node, int]


@dataclass
class Parts:
    """Links to the outputs of the loaders, and what suits the model. `picture`: only the embedded has one."""

    model: Link
    speech_encoder: Link
    clip: Link
    vae: Link
    vocoder: Link
    picture: Link | None
    settings: Settings
    caption: str
    line: str
    voice_line: str

    @property
    def schedule(self) -> dict:
        return {"steps": self.settings.steps, "shift": self.settings.shift}

    @property
    def null_pass(self) -> dict:
        guidance = self.settings.guidance
        return {"interval": guidance.interval, "skip_layer": next(iter(guidance.skip_layers), -1)}

    @property
    def guidance(self) -> dict:
        return {"s_v": self.settings.guidance.s_v, "s_a": self.settings.guidance.s_a, **self.null_pass}


def parts(g: Graph, embedded: bool) -> Parts:
    with g.group("1  Model", "load"):
        if embedded:
            model = g.add("UniAVGenEmbeddedModel")
            texts = PUPPET_CAPTION, PUPPET_LINE, PUPPET_VOICE_LINE
            return Parts(*((model, slot) for slot in range(6)), embedded_model.settings(), *texts)
        model = g.add("UniAVGenLoadModel", model_name=MODEL)
        clip = g.add(
            "CLIPLoader", "Caption encoder", models=[TEXT_ENCODER], clip_name=TEXT_ENCODER["name"], type="wan"
        )
        vae = g.add("VAELoader", "VAE", models=[VAE], vae_name=VAE["name"])
        vocoder = g.add("UniAVGenLoadVocoder", vocoder_name=VOCODER)
        links = (model, 0), (model, 1), (clip, 0), (vae, 0), (vocoder, 0)
        return Parts(*links, None, Settings(), CAPTION, LINE, VOICE_LINE)


def captions(g: Graph, p: Parts) -> tuple[Node, Node]:
    positive = g.add("CLIPTextEncode", "Caption: what is seen", extra=70, clip=p.clip, text=p.caption)
    negative = g.add("CLIPTextEncode", "Empty caption (leave empty)", extra=40, clip=p.clip, text="")
    return positive, negative


def speech(g: Graph, p: Parts, text: str, transcript: str = "", title: str | None = None) -> Node:
    return g.add(
        "UniAVGenSpeechEncode",
        title,
        extra=130,
        speech_encoder=p.speech_encoder,
        text=text,
        transcript=transcript,
    )


def encode_image(g: Graph, p: Parts, image: Link, fps: float | Link = 16.0) -> Node:
    return g.add("UniAVGenVideoEncode", vae=p.vae, image=image, short_side=p.settings.short_side, fps=fps)


def sample(g: Graph, p: Parts, task: Node, title: str | None = None, **values) -> Node:
    return g.add(
        "UniAVGenSampler",
        title,
        model=p.model,
        positive=(task, 0),
        negative=(task, 1),
        latent=(task, 2),
        **p.guidance | p.schedule | values,
    )


def decode(g: Graph, p: Parts, sampled: Node) -> tuple[Node, Node]:
    """Pictures and sound of a sampled latent, in two columns."""
    split = g.add("UniAVGenSplit", latent=(sampled, 0))
    g.column(260)
    images = g.add("VAEDecode", samples=(split, 0), vae=p.vae)
    audio = g.add("UniAVGenVocoderDecode", audio=(split, 1), vocoder=p.vocoder)
    return images, audio


def save(g: Graph, images: Node, audio: Node, name: str) -> None:
    clip = g.add("UniAVGenMux", images=(images, 0), audio=(audio, 0))
    g.add("SaveVideo", extra=300, video=(clip, 0), filename_prefix=f"video/uniavgen_{name}")


def one_clip(mode: str, embedded: bool) -> Graph:
    g = Graph()
    g.note(note(mode, embedded), 700)
    p = parts(g, embedded)
    task = prepare(g, p, mode)
    with g.group("4  Generate", "sample"):
        sampled = sample(g, p, task)
    with g.group("5  Video", "out", 200):
        images, audio = decode(g, p, sampled)
        g.column(320)
        save(g, images, audio, f"embedded_{mode}" if embedded else mode)
    return g


def recording(
    g: Graph, p: Parts, mode: str, positive: Node, negative: Node, words: Node | None
) -> tuple[Link, Link]:
    """Frames and sound of a clip made on the spot, in place of the artist's own files."""
    with g.group("A recording, made on the spot (use your own instead)", "give"):
        words = words or speech(g, p, p.voice_line, title="Words of the recording")
        encoded = encode_image(g, p, p.picture)
        g.column()
        task = g.add(
            "UniAVGenJoint",
            positive=(positive, 0),
            negative=(negative, 0),
            speech=(words, 0),
            video=(encoded, 0),
            frames=p.settings.frames,
        )
        sampled = sample(g, p, task, "Sampler of the recording", seed=7)
        g.column(200)
        frames, sound = decode(g, p, sampled)
        if mode == "continuation":
            frames = g.add(
                "ImageFromBatch", "The beginning", image=(frames, 0), batch_index=0, length=BEGINNING
            )
        return (frames, 0), (sound, 0)


def prepare(g: Graph, p: Parts, mode: str) -> Node:
    """What the artist brings, encoded; the task node."""
    uses_video = mode in ("continuation", "dubbing")
    uses_sound = mode in ("reference_voice", "continuation", "audio_driven")
    recorded = p.picture is not None and mode != "joint"
    says_the_same = recorded and mode != "reference_voice"  # as the recording
    audio, fps, source = None, 16.0, p.picture
    with g.group("2  What you bring", "give"):
        if uses_video and not recorded:
            video = g.add("LoadVideo", "Video", extra=300, file="clip.mp4")
            components = g.add("GetVideoComponents", video=(video, 0))
            source, audio, fps = (components, 0), (components, 1), (components, 2)
        elif source is not None:
            g.add("PreviewImage", "Picture of the person", extra=240, images=source)
        else:
            source = (g.add("LoadImage", "Picture of the person", extra=240, image="example.png"), 0)
            if uses_sound:
                title = "Voice" if mode == "reference_voice" else "Speech"
                audio = (g.add("LoadAudio", title, extra=40, audio="voice.wav"), 0)
        positive, negative = captions(g, p)
        line = p.voice_line if says_the_same or mode == "audio_driven" else p.line
        words = speech(g, p, line, p.voice_line if mode == "reference_voice" else "")
    if recorded:
        frames, audio = recording(g, p, mode, positive, negative, words if says_the_same else None)
        source = frames if uses_video else source
    with g.group("3  Encode, and the task", "task"):
        video = encode_image(g, p, source, fps)
        mel = g.add("UniAVGenMelEncode", audio=audio) if uses_sound else None
        g.column()
        links = {
            "positive": (positive, 0),
            "negative": (negative, 0),
            "speech": (words, 0),
            "video": (video, 0),
        }
        if mode == "joint":
            return g.add("UniAVGenJoint", frames=p.settings.frames, **links)
        if mode == "reference_voice":
            return g.add(
                "UniAVGenReferenceVoice", reference_voice=(mel, 0), frames=p.settings.frames, **links
            )
        if mode == "continuation":
            return g.add("UniAVGenContinuation", mel=(mel, 0), frames=p.settings.frames, **links)
        if mode == "dubbing":
            return g.add("UniAVGenDubbing", **links)
        return g.add("UniAVGenAudioDriven", mel=(mel, 0), **links)


def advanced(embedded: bool) -> Graph:
    g = Graph()
    name = "embedded_advanced" if embedded else "advanced"
    g.note(note("advanced", embedded), 700)
    p = parts(g, embedded)
    task = prepare(g, p, "joint")
    with g.group("4  Generate, piece by piece", "sample"):
        noise = g.add("RandomNoise", noise_seed=2025)
        guider = g.add("UniAVGenGuider", model=p.model, positive=(task, 0), negative=(task, 1), **p.guidance)
        solver = g.add("KSamplerSelect", sampler_name="euler")
        sigmas = g.add("UniAVGenScheduler", **p.schedule)
        g.column(240)
        sampled = g.add(
            "SamplerCustomAdvanced",
            noise=(noise, 0),
            guider=(guider, 0),
            sampler=(solver, 0),
            sigmas=(sigmas, 0),
            latent_image=(task, 2),
        )
    with g.group("5  Video", "out", 200):
        images, audio = decode(g, p, sampled)
        g.column(320)
        save(g, images, audio, name)
    with g.group("6  Where the model sees the face", "task", 320):
        face = g.add(
            "UniAVGenFaceMask",
            model=p.model,
            positive=(task, 0),
            negative=(task, 1),
            latent=(sampled, 0),
            images=(images, 0),
        )
        g.column(320)
        clip = g.add("UniAVGenMux", "Mux with the mask", images=(face, 1), audio=(audio, 0))
        g.add(
            "SaveVideo",
            "Save the mask",
            extra=300,
            video=(clip, 0),
            filename_prefix=f"video/uniavgen_{name}_face",
        )
    return g


def guidance_grid(embedded: bool) -> Graph:
    g = Graph()
    name = "embedded_guidance_grid" if embedded else "guidance_grid"
    g.note(note("guidance_grid", embedded), 700)
    p = parts(g, embedded)
    if not embedded:
        p.settings = replace(p.settings, short_side=384, frames=49, steps=25)
    task = prepare(g, p, "joint")
    with g.group("4  Every pair of s_v and s_a", "sample"):
        grid = g.add(
            "UniAVGenGuidanceGrid",
            model=p.model,
            positive=(task, 0),
            negative=(task, 1),
            latent=(task, 2),
            s_v="1, 2, 4" if embedded else "1, 3, 5",
            s_a="1, 2" if embedded else "1, 3",
            **p.null_pass | p.schedule,
        )
    with g.group("5  Decode them all", "out", 200):
        images, audio = decode(g, p, grid)
    with g.group("6  One sheet with labels", "out", 320):
        sheet = g.add("UniAVGenCompare", images=(images, 0), labels=(grid, 1), columns=(grid, 2))
        clip = g.add("CreateVideo", images=(sheet, 0), fps=16.0)
        g.add(
            "SaveVideo",
            "Save the sheet",
            extra=260,
            video=(clip, 0),
            filename_prefix=f"video/uniavgen_{name}",
        )
    with g.group("7  Every clip with its sound", "out", 320):
        save(g, images, audio, f"{name}_clip")
    return g


def workflows() -> dict[str, Graph]:
    """Every workflow by its file name without `.json`."""
    graphs = {}
    for prefix, embedded in (("", False), ("embedded_", True)):
        graphs |= {prefix + mode: one_clip(mode, embedded) for mode in MODES}
        graphs[f"{prefix}advanced"] = advanced(embedded)
        graphs[f"{prefix}guidance_grid"] = guidance_grid(embedded)
    return graphs


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
    (WORKFLOWS / "api").mkdir(exist_ok=True)
    for name, graph in workflows().items():
        (WORKFLOWS / f"{name}.json").write_text(text(graph.ui()), encoding="utf-8")
        (WORKFLOWS / "api" / f"{name}.json").write_text(text(graph.api()), encoding="utf-8")
    ENGLISH.write_text(text(english()), encoding="utf-8")
