"""What comes over a link is checked before a node runs.

The page refuses wrong widgets and wrong sockets, but lets links of wildcard nodes, of primitives and of nodes
that give None through as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from comfy_api.latest import Input, io

from ..uniavgen_core.errors import UserError
from .loading import LoadedSpeechEncoder, LoadedVocoder
from .types import EncodedSpeech, EncodedVideo, PreparedAudio


def _is_conditioning(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, (list, tuple))
        and len(entry) == 2
        and torch.is_tensor(entry[0])
        and isinstance(entry[1], dict)
        for entry in value
    )


def _is_audio(value: object) -> bool:
    return (
        isinstance(value, dict)
        and torch.is_tensor(value.get("waveform"))
        and type(value.get("sample_rate")) is int
    )


def _is_latent(value: object) -> bool:
    samples = value.get("samples") if isinstance(value, dict) else None
    return torch.is_tensor(samples) or getattr(samples, "is_nested", False)


def _has(*names: str) -> Callable[[object], bool]:
    return lambda value: all(hasattr(value, name) for name in names)


# type of a socket -> whether a value is one, and where one comes from
SOCKETS: dict[str, tuple[Callable[[object], bool], str]] = {
    "AUDIO": (_is_audio, "an AUDIO, such as Load Audio gives; a video without sound has none"),
    "CONDITIONING": (_is_conditioning, "a CONDITIONING"),
    "IMAGE": (torch.is_tensor, "an IMAGE, such as Load Image gives"),
    "LATENT": (_is_latent, "a LATENT"),
    "MASK": (torch.is_tensor, "a MASK, such as Load Image gives"),
    "MODEL": (_has("model", "model_options"), "a MODEL, from UniAVGen Load Model"),
    "VIDEO": (lambda value: isinstance(value, Input.Video), "a VIDEO, such as Load Video gives"),
    "VAE": (_has("encode", "latent_channels"), "a VAE, from Load VAE or UniAVGen Embedded Model"),
    "STRING": (lambda value: isinstance(value, str), "a text"),
    "UNIAVGEN_MEL": (lambda value: isinstance(value, PreparedAudio), "the mel of UniAVGen Mel Encode"),
    "UNIAVGEN_SPEECH": (
        lambda value: isinstance(value, EncodedSpeech),
        "the speech of UniAVGen Speech Encode",
    ),
    "UNIAVGEN_SPEECH_ENCODER": (
        lambda value: isinstance(value, LoadedSpeechEncoder),
        "the speech_encoder of UniAVGen Load Model",
    ),
    "UNIAVGEN_VIDEO": (lambda value: isinstance(value, EncodedVideo), "the video of UniAVGen Video Encode"),
    "UNIAVGEN_VOCODER": (
        lambda value: isinstance(value, LoadedVocoder),
        "the vocoder of UniAVGen Load Vocoder",
    ),
}


def described(value: object) -> str:
    """What a value is, in a few words."""
    if value is None:
        return "nothing (None)"
    if torch.is_tensor(value):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, (bool, int, float, str)):
        return repr(value)[:60]
    if isinstance(value, dict) and value:
        return f"a dict of {', '.join(map(str, value))}"[:60]
    return f"a {type(value).__name__}"


def check_value(field: io.Input, value: object) -> None:
    """Raises UserError, naming the input, unless `value` fits it."""
    kind = field.get_io_type()
    if value is None and field.optional:
        return
    if isinstance(field, (io.Int.Input, io.Float.Input)):
        whole = isinstance(field, io.Int.Input)
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        low, high = field.min, field.max
        if not number or not low <= value <= high:
            raise UserError(
                f"{field.id} is {described(value)}, expected a {'whole number' if whole else 'number'} from "
                f"{low} to {high}; change what is connected to it"
            )
    elif isinstance(field, io.Combo.Input):
        files = field.id.endswith("_name")  # the loaders say where files belong
        if value not in field.options and not files:
            choices = ", ".join(map(str, field.options))
            raise UserError(f"{field.id} is {described(value)}, expected one of {choices}")
    else:
        wanted: list[str] = []
        for known in kind.split(","):
            fits, known_as = SOCKETS.get(known, (lambda value: True, ""))
            if fits(value):
                return
            wanted.append(known_as)
        raise UserError(f"{field.id} is {described(value)}, expected {' or '.join(wanted)}")


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, whose `execute` checks its inputs first."""
    execute = node.execute.__func__

    @functools.wraps(execute)
    def run(cls, **inputs):
        schema = cls.define_schema()
        for field in schema.inputs:
            if field.id in inputs:
                value = inputs[field.id]
                for one in value if schema.is_input_list and isinstance(value, list) else [value]:
                    check_value(field, one)
        return execute(cls, **inputs)

    node.execute = classmethod(run)
    return node
