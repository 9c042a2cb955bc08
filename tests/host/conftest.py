"""A real ComfyUI, as a server of this session and inside this process; its folder is in COMFYUI_PATH."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.append(str(HERE))  # behind tests/, which has a conftest too

from host_server import HostServer  # noqa: E402
from tiny_files import write_models  # noqa: E402

PACK = "uniavgen_pack"


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH is not set; point it to a ComfyUI folder to run the tests on the host")
    return Path(path).resolve()


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="session")
def server(comfy_path, models_folder, tmp_path_factory):
    """One running server with the pack, small models and a picture."""
    base = tmp_path_factory.mktemp("comfy")
    (base / "models").symlink_to(models_folder, target_is_directory=True)
    (base / "input").mkdir()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(base / "input" / "picture.png")
    with HostServer(comfy_path, base) as running:
        yield running


@pytest.fixture(scope="session")
def host(comfy_path, models_folder):
    """ComfyUI's modules in this process, on the CPU; the pack is importable as `uniavgen_pack`."""
    sys.path.insert(0, str(comfy_path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import folder_paths

    for name in ("diffusion_models", "vae", "loras"):
        folder_paths.add_model_folder_path(name, str(models_folder / name), is_default=True)
    root = HERE.parents[1]
    spec = importlib.util.spec_from_file_location(
        PACK, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = pack
    spec.loader.exec_module(pack)
    import server

    # where the host has its server: nothing is queued, and what nodes tell is not shown
    queue = SimpleNamespace(get_current_queue_volatile=lambda: ([], []))
    server.PromptServer.instance = SimpleNamespace(
        prompt_queue=queue, send_progress_text=lambda text, node_id: None
    )
    return pack


@pytest.fixture(scope="module", autouse=True)
def as_in_a_node():
    """The host runs nodes in inference mode; one thread is fastest for models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)
