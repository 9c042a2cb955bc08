"""Writes workflows/*.json, their API twins and the English names: `python tests/build_workflows.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from workflow_graph import GOLDEN, Graph, Node
from workflow_notes import note

WORKFLOWS = Path(__file__).parents[1] / "workflows"
ENGLISH = Path(__file__).parents[1] / "locales" / "en" / "nodeDefs.json"

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
MODES = ("joint", "reference_voice", "continuation", "dubbing", "audio_driven")


@dataclass
class Parts:
    """Links to the outputs of the loaders, and the sizes that suit the model."""

    model: tuple[Node, int]
    speech_encoder: tuple[Node, int]
    clip: tuple[Node, int]
    vae: tuple[Node, int]
    vocoder: tuple[Node, int]
    short_side: int
    frames: int
    steps: int


def parts(g: Graph, embedded: bool) -> Parts:
    with g.group("1  Model", "load"):
        if embedded:
            model = g.add("UniAVGenEmbeddedModel")
            return Parts(*((model, slot) for slot in range(5)), short_side=128, frames=33, steps=8)
        model = g.add("UniAVGenLoadModel", model_name=MODEL)
        clip = g.add(
            "CLIPLoader", "Caption encoder", models=[TEXT_ENCODER], clip_name=TEXT_ENCODER["name"], type="wan"
        )
        vae = g.add("VAELoader", "VAE", models=[VAE], vae_name=VAE["name"])
        vocoder = g.add("UniAVGenLoadVocoder", vocoder_name=VOCODER)
        return Parts((model, 0), (model, 1), (clip, 0), (vae, 0), (vocoder, 0), 736, 81, 50)


def captions(g: Graph, p: Parts) -> tuple[Node, Node]:
    positive = g.add("CLIPTextEncode", "Caption: what is seen", extra=70, clip=p.clip, text=CAPTION)
    negative = g.add("CLIPTextEncode", "Empty caption (leave empty)", extra=40, clip=p.clip, text="")
    return positive, negative


def speech(g: Graph, p: Parts, transcript: str = "", text: str = LINE, title: str | None = None) -> Node:
    return g.add(
        "UniAVGenSpeechEncode",
        title,
        extra=130,
        speech_encoder=p.speech_encoder,
        text=text,
        transcript=transcript,
    )


def encode_image(
    g: Graph, p: Parts, image: Node, fps: float | tuple = 16.0, title: str | None = None
) -> Node:
    return g.add("UniAVGenVideoEncode", title, vae=p.vae, image=(image, 0), short_side=p.short_side, fps=fps)


def sample(g: Graph, p: Parts, task: Node, title: str | None = None, **values) -> Node:
    return g.add(
        "UniAVGenSampler",
        title,
        model=p.model,
        positive=(task, 0),
        negative=(task, 1),
        latent=(task, 2),
        **{"steps": p.steps} | values,
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
    task = prepare(g, p, mode, embedded)
    with g.group("4  Generate", "sample"):
        sampled = sample(g, p, task)
    with g.group("5  Video", "out", 200):
        images, audio = decode(g, p, sampled)
        g.column(320)
        save(g, images, audio, f"embedded_{mode}" if embedded else mode)
    return g


def recording(g: Graph, p: Parts, image: Node, positive: Node, negative: Node) -> tuple[Node, Node]:
    """Frames and sound of a short clip made on the spot, in place of the artist's own files."""
    with g.group("A recording, made on the spot (use your own instead)", "give"):
        words = speech(g, p, text=VOICE_LINE, title="Words of the recording")
        encoded = encode_image(g, p, image)
        g.column()
        task = g.add(
            "UniAVGenJoint",
            positive=(positive, 0),
            negative=(negative, 0),
            speech=(words, 0),
            video=(encoded, 0),
            frames=17,
        )
        sampled = sample(g, p, task, "Sampler of the recording", steps=4, seed=7)
        g.column(200)
        return decode(g, p, sampled)


def prepare(g: Graph, p: Parts, mode: str, embedded: bool) -> Node:
    """What the artist brings, encoded; the task node."""
    uses_video = mode in ("continuation", "dubbing")
    uses_sound = mode in ("reference_voice", "continuation", "audio_driven")
    recorded = embedded and mode != "joint"
    audio, fps = None, 16.0
    with g.group("2  What you bring", "give"):
        if uses_video and not recorded:
            video = g.add("LoadVideo", "Video", extra=300, file="clip.mp4")
            source = g.add("GetVideoComponents", video=(video, 0))
            audio, fps = (source, 1), (source, 2)
        else:
            source = g.add("LoadImage", "Picture of the person", extra=240, image="example.png")
            if uses_sound and not recorded:
                title = "Voice" if mode == "reference_voice" else "Speech"
                audio = (g.add("LoadAudio", title, extra=40, audio="voice.wav"), 0)
        positive, negative = captions(g, p)
        line = VOICE_LINE if mode == "audio_driven" else LINE
        words = speech(g, p, VOICE_LINE if mode == "reference_voice" else "", line)
    if recorded:
        frames, sound = recording(g, p, source, positive, negative)
        audio = (sound, 0)
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
            return g.add("UniAVGenJoint", frames=p.frames, **links)
        if mode == "reference_voice":
            return g.add("UniAVGenReferenceVoice", reference_voice=(mel, 0), frames=p.frames, **links)
        if mode == "continuation":
            return g.add("UniAVGenContinuation", mel=(mel, 0), frames=p.frames, **links)
        if mode == "dubbing":
            return g.add("UniAVGenDubbing", **links)
        return g.add("UniAVGenAudioDriven", mel=(mel, 0), **links)


def advanced(embedded: bool) -> Graph:
    g = Graph()
    name = "embedded_advanced" if embedded else "advanced"
    g.note(note("advanced", embedded), 700)
    p = parts(g, embedded)
    task = prepare(g, p, "joint", embedded)
    with g.group("4  Generate, piece by piece", "sample"):
        noise = g.add("RandomNoise", noise_seed=2025)
        guider = g.add("UniAVGenGuider", model=p.model, positive=(task, 0), negative=(task, 1))
        solver = g.add("KSamplerSelect", sampler_name="euler")
        sigmas = g.add("UniAVGenScheduler", steps=p.steps)
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
    p.frames, p.steps = (17, 4) if embedded else (49, 25)
    p.short_side = 128 if embedded else 384
    task = prepare(g, p, "joint", embedded)
    with g.group("4  Every pair of s_v and s_a", "sample"):
        grid = g.add(
            "UniAVGenGuidanceGrid",
            model=p.model,
            positive=(task, 0),
            negative=(task, 1),
            latent=(task, 2),
            s_v="1, 3, 5",
            s_a="1, 3",
            steps=p.steps,
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
