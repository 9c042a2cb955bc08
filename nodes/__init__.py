"""The node pack: one file per stage, the only place that knows ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from . import decoding, embedded, encoding, face_mask, guiding, loading, muxing, puppet, tasks

WEB_DIRECTORY = "./web"


class UniAVGenExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        stages = (loading, embedded, puppet, encoding, tasks, guiding, decoding, muxing, face_mask)
        return [node for stage in stages for node in stage.NODES]


async def comfy_entrypoint() -> UniAVGenExtension:
    return UniAVGenExtension()
