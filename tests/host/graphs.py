"""Prompts in the server's own format, with node ids to be read: `graph["sampler"]["inputs"]["steps"]`."""

from __future__ import annotations

from copy import deepcopy


def node(class_type: str, /, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def parts() -> dict:
    """The embedded model, caption and words."""
    return {
        "parts": node("UniAVGenEmbeddedModel"),
        "caption": node("CLIPTextEncode", clip=["parts", 2], text="a person talks"),
        "no caption": node("CLIPTextEncode", clip=["parts", 2], text=""),
        "words": node(
            "UniAVGenSpeechEncode",
            speech_encoder=["parts", 1],
            text="Good morning.",
            language="en",
            transcript="",
        ),
        "picture": node("LoadImage", image="picture.png"),
        "video": node("UniAVGenVideoEncode", vae=["parts", 3], image=["picture", 0], short_side=64, fps=16.0),
    }


def task(class_type: str, **inputs) -> dict:
    texts = {"positive": ["caption", 0], "negative": ["no caption", 0], "speech": ["words", 0]}
    return {"task": node(class_type, **texts, video=["video", 0], **inputs)}


def sampler(steps: int = 2, **inputs) -> dict:
    settings = {"s_v": 3.0, "s_a": 2.0, "seed": 2025, "interval": 0.5, "skip_layer": 1, "shift": 5.0}
    sockets = {"model": ["parts", 0], "positive": ["task", 0], "negative": ["task", 1], "latent": ["task", 2]}
    return {"sampler": node("UniAVGenSampler", **sockets, **(settings | {"steps": steps} | inputs))}


def advanced_sampler(steps: int = 2, sampler_name: str = "euler") -> dict:
    """Guider and schedule of ours under the host's own sampler; in place of `sampler`."""
    return {
        "guider": node(
            "UniAVGenGuider",
            model=["parts", 0],
            positive=["task", 0],
            negative=["task", 1],
            s_v=3.0,
            s_a=2.0,
            interval=0.5,
            skip_layer=1,
        ),
        "sigmas": node("UniAVGenScheduler", steps=steps, shift=5.0),
        "noise": node("RandomNoise", noise_seed=2025),
        "method": node("KSamplerSelect", sampler_name=sampler_name),
        "sampler": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["method", 0],
            sigmas=["sigmas", 0],
            latent_image=["task", 2],
        ),
    }


def outcome() -> dict:
    """From the sampled latent to a file."""
    return {
        "split": node("UniAVGenSplit", latent=["sampler", 0]),
        "frames": node("VAEDecode", samples=["split", 0], vae=["parts", 3]),
        "sound": node("UniAVGenVocoderDecode", vocoder=["parts", 4], audio=["split", 1]),
        "mux": node("UniAVGenMux", images=["frames", 0], audio=["sound", 0], fps=16.0),
        "saved": node(
            "SaveVideo",
            video=["mux", 0],
            filename_prefix="clip",
            **{"format": "mp4", "format.codec": "auto"},
        ),
    }


ENCODERS = {"parts", "caption", "no caption", "words", "picture", "video", "task"}
FOLLOWERS = {"sampler", "split", "frames", "sound", "mux", "saved"}


def clip(mode: str = "joint", steps: int = 2, frames: int = 5) -> dict:
    """A whole clip of one of the modes; small and short."""
    graph = parts()
    if mode in ("continuation", "dubbing", "edit"):
        graph["picture"] = given("5 frames")
    if mode != "joint":
        heard = "sound of 5 frames" if mode in ("continuation", "edit") else "voice"
        graph |= {"heard": given(heard), "mel": node("UniAVGenMelEncode", audio=["heard", 0])}
    if mode == "reference-voice":
        graph["words"]["inputs"]["transcript"] = "one two"
    graph |= {
        "joint": lambda: task("UniAVGenJoint", frames=frames),
        "reference-voice": lambda: task("UniAVGenReferenceVoice", reference_voice=["mel", 0], frames=frames),
        "continuation": lambda: task("UniAVGenContinuation", mel=["mel", 0], frames=max(frames, 9)),
        "dubbing": lambda: task("UniAVGenDubbing"),
        "audio-driven": lambda: task("UniAVGenAudioDriven", mel=["mel", 0]),
        "edit": lambda: task("UniAVGenEdit", mel=["mel", 0], start=0.1, end=0.25, edit="both"),
    }[mode]()
    return graph | sampler(steps) | outcome()


def given(name: str) -> dict:
    """The test pack's node that puts anything on a socket."""
    return node("Given", name=name)


def changed(graph: dict, changes: dict, extra: dict | None = None) -> dict:
    """A copy with some inputs set anew, or taken off: `{"sampler.steps": 0, "video.image": None}`."""
    graph = deepcopy(graph | (extra or {}))
    for place, value in changes.items():
        name, _, key = place.partition(".")
        graph[name]["inputs"][key] = value
        if value is None:
            del graph[name]["inputs"][key]
    return graph


def shown(source: list) -> dict:
    """An output node behind any socket, so that what feeds it is run."""
    return {f"shown {source[0]}": node("PreviewAny", source=source)}
