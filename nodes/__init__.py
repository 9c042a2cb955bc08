"""The node pack: one file per stage, the only place that knows ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from ..uniavgen_core.errors import UserError
from . import (
    decoding,
    doctor,
    embedded,
    encoding,
    face_mask,
    guiding,
    keyframes,
    loading,
    long_speech,
    muxing,
    puppet,
    takes,
    tasks,
    timing,
    who_speaks,
)
from .checks import checked

WEB_DIRECTORY = "./web"

for _kind in (UserError, *UserError.__subclasses__()):
    _kind.__module__ = "builtins"  # the page writes the module before the name of any other exception


class UniAVGenExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        stages = (
            *(loading, embedded, puppet, encoding, tasks, who_speaks, keyframes),
            *(guiding, long_speech, decoding, takes, muxing, face_mask, timing, doctor),
        )
        return [checked(node) for stage in stages for node in stage.NODES]


async def comfy_entrypoint() -> UniAVGenExtension:
    return UniAVGenExtension()
