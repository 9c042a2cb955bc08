"""Files from the host's model folders: the model with its speech encoder, and the vocoder."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ..uniavgen_core.errors import UserError
from ..uniavgen_core.media.vocoder import GriffinLim, Vocoder, load_vocoder
from ..uniavgen_core.model.config import Config
from ..uniavgen_core.model.speech_encoder import SpeechEncoder
from ..uniavgen_core.threads import fitting_threads
from ..uniavgen_core.weights.checkpoint import read_checkpoint
from .host_model import build_patcher
from .types import CATEGORY, SpeechEncoderSocket, VocoderSocket, tell

MODEL_FOLDER, VOCODER_FOLDER = "diffusion_models", "vae"
MODEL_PAGE = "huggingface.co/MCG-NJU/UniAVGen"
VOCODER_PAGE = "huggingface.co/MCG-NJU/UniAVGen (its folder code2wav_bigvgan_model)"
GRIFFIN_LIM = "Griffin-Lim (no file)"
WEIGHT_DTYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
SHARD = re.compile(r".+-(\d{5})-of-\d{5}\.safetensors")
VOCODER_OF_RELEASE = "code2wav_bigvgan_model"
SPEECH_PART = "text_embedding."


class LoadedSpeechEncoder:
    """The ConvNeXt V2 part of a checkpoint in a patcher of its own; float32, 25 MB in the release.

    `puppet`: it belongs to the embedded model, which knows few words.
    """

    def __init__(self, state_dict: dict[str, Tensor], config: Config, puppet: bool = False):
        self.puppet = puppet
        module = SpeechEncoder(
            config.speech_vocab,
            config.speech_dim,
            config.speech_layers,
            comfy.ops.manual_cast,
            dtype=torch.float32,
        )
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            module.eval().requires_grad_(False),
            load_device=comfy.model_management.text_encoder_device(),
            offload_device=comfy.model_management.text_encoder_offload_device(),
        )
        module.load_state_dict(state_dict, assign=self.patcher.is_dynamic())

    def __call__(self, ids: list[int]) -> Tensor:
        """Symbol ids -> features `[1, N, dim]` on the CPU."""
        comfy.model_management.load_models_gpu([self.patcher])
        features = self.patcher.model(torch.tensor([ids], device=self.patcher.load_device))
        return features.to(comfy.model_management.intermediate_device(), torch.float32)


class LoadedVocoder:
    """A vocoder in a patcher of its own."""

    def __init__(self, vocoder: Vocoder | GriffinLim):
        # plain torch layers: the host moves them as a whole
        self.patcher = comfy.model_patcher.ModelPatcher(
            vocoder,
            load_device=comfy.model_management.vae_device(),
            offload_device=comfy.model_management.vae_offload_device(),
        )

    @property
    def sample_rate(self) -> int:
        return self.patcher.model.sample_rate

    def __call__(self, log_mel: Tensor) -> Tensor:
        """Log-mel `[B, 80, L]` -> waveform `[B, 240 L]` on the CPU."""
        comfy.model_management.load_models_gpu([self.patcher], memory_required=log_mel.numel() * 2**14)
        comfy.model_management.throw_exception_if_processing_interrupted()
        with fitting_threads(self.patcher.model, self.patcher.load_device):
            waveform = self.patcher.model(log_mel.to(self.patcher.load_device, torch.float32))
        return waveform.to(comfy.model_management.intermediate_device(), torch.float32)


def listed(folder: str) -> list[str]:
    """Names that the loaders offer; what belongs together stands there once, as its folder and `/`.

    That is a folder of shards (the release's, other parts in it included) and a vocoder's folder. Of the
    vocoder's folder `vae` also those that lie in a release among the diffusion models.
    """
    return list(_places(folder))


def located(folder: str, name: str) -> Path | None:
    """Where a name of `listed` is, a file or a folder."""
    place = _places(folder).get(name)
    if place is None:
        return None
    path = Path(folder_paths.get_full_path_or_raise(*place))
    if not name.endswith("/"):
        return path
    return next(p for p in path.parents if p.name == PurePath(name).name)


def _places(folder: str) -> dict[str, tuple[str, str]]:
    """Names of `listed` -> the host's folder and file."""
    files = folder_paths.get_filename_list(folder)
    sharded = {PurePath(f).parent for f in files if SHARD.fullmatch(f) and PurePath(f).parent.name}
    places = {}
    for file in files:
        parents = [p for p in PurePath(file).parents if p in sharded or p.name == VOCODER_OF_RELEASE]
        # a vocoder is looked for in the innermost folder, a model in the one of its shards
        group = parents[0 if folder == VOCODER_FOLDER else -1] if parents else None
        places.setdefault(f"{group.as_posix()}/" if group else file, (folder, file))
    if folder == VOCODER_FOLDER:
        for file in folder_paths.get_filename_list(MODEL_FOLDER):
            if PurePath(file).parent.name == VOCODER_OF_RELEASE:
                places.setdefault(f"{PurePath(file).parent.as_posix()}/", (MODEL_FOLDER, file))
    return places


def missing(what: str, name: str, folder: str, page: str) -> str:
    places = " or ".join(folder_paths.get_folder_paths(folder))
    return f"{what} {name!r} is not in {places}; download it from {page}, put it there and refresh (R)"


def load_parts(name: str, weight_dtype: str = "default"):
    """MODEL patcher, speech encoder and notes by a name of `listed`.

    Raises:
        UserError: no such file; as `parts_of`.
    """
    path = located(MODEL_FOLDER, name)
    if path is None:
        raise UserError(missing("model_name", name, MODEL_FOLDER, MODEL_PAGE))
    return parts_of(path, weight_dtype)


def parts_of(path: Path, weight_dtype: str = "default", disable_dynamic: bool = False, puppet: bool = False):
    """MODEL patcher and speech encoder of one file or folder, and notes on tensors that are not used.

    `puppet`: it is the embedded model.

    Raises:
        UserError: another kind of file, tensors that do not fit.
    """
    checkpoint = read_checkpoint(path)
    model, notes = checkpoint.new_model()
    config, names = model.config, model.state_dict().keys()
    layers = {name.rpartition(".")[0] for name in names}
    state_dict: dict[str, Tensor] = {}
    for file in checkpoint.files:
        tensors, metadata = comfy.utils.load_torch_file(str(file), return_metadata=True)
        tensors, _ = comfy.utils.convert_old_quants(tensors, checkpoint.prefix, metadata=metadata)
        for key, value in tensors.items():
            name = key.removeprefix(checkpoint.prefix)
            if name in names or (name not in checkpoint.tensors and name.rpartition(".")[0] in layers):
                state_dict[name] = value  # a tensor of the model, or what fp8 stores beside one
    speech = {
        key.removeprefix(SPEECH_PART): checkpoint.tensor(key, dtype=torch.float32)
        for key in names
        if key.startswith(SPEECH_PART)
    }
    patcher = build_patcher(
        state_dict,
        config,
        WEIGHT_DTYPES[weight_dtype],
        weight_dtype == "fp8_e4m3fn_fast",
        disable_dynamic,
    )
    patcher.cached_patcher_init = (_model_again, (path, weight_dtype))
    return patcher, LoadedSpeechEncoder(speech, config, puppet), notes


def _model_again(path: Path, weight_dtype: str, disable_dynamic: bool = False):
    return parts_of(path, weight_dtype, disable_dynamic)[0]


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenLoadModel",
            display_name="UniAVGen Load Model",
            search_aliases=[
                "uniavgen",
                "load checkpoint",
                "load diffusion model",
                "audio video",
                "talking",
                "lip sync",
            ],
            category=CATEGORY,
            description="Loads UniAVGen from diffusion_models: the release's folder as it was downloaded, or "
            "one safetensors file. The speech encoder is part of the same file.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=listed(MODEL_FOLDER),
                    tooltip="A file in models/diffusion_models; a name that ends in / is a folder of shards. "
                    f"The released model is at {MODEL_PAGE}.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="default: as the file and the device want it. fp8 halves the memory of the "
                    "weights (7 GB instead of 14) and costs detail; _fast multiplies in fp8 too.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For LoRA loaders, the UniAVGen Sampler or any other sampler."),
                SpeechEncoderSocket.Output(
                    display_name="speech_encoder", tooltip="For UniAVGen Speech Encode."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool | str:
        if model_name is None or model_name in listed(MODEL_FOLDER):
            return True
        return missing("model_name", model_name, MODEL_FOLDER, MODEL_PAGE)

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        model, speech_encoder, notes = load_parts(model_name, weight_dtype)
        for note in notes:
            tell(cls, note)
        return io.NodeOutput(model, speech_encoder)


class LoadVocoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="UniAVGenLoadVocoder",
            display_name="UniAVGen Load Vocoder",
            search_aliases=["bigvgan", "griffin-lim", "audio decoder", "load audio vae"],
            category=CATEGORY,
            description="Loads the vocoder, which decodes the audio latent to a waveform: Qwen2.5-Omni's "
            "BigVGAN.",
            inputs=[
                io.Combo.Input(
                    "vocoder_name",
                    options=[GRIFFIN_LIM, *listed(VOCODER_FOLDER)],
                    tooltip="The BigVGAN: code2wav_bigvgan_model of the release in models/diffusion_models "
                    "or models/vae, or a file in models/vae. Griffin-Lim needs no file; it sounds metallic.",
                )
            ],
            outputs=[VocoderSocket.Output(display_name="vocoder", tooltip="For UniAVGen Audio Decode.")],
        )

    @classmethod
    def validate_inputs(cls, vocoder_name: str | None) -> bool | str:
        if vocoder_name in (None, GRIFFIN_LIM, *listed(VOCODER_FOLDER)):
            return True
        return missing("vocoder_name", vocoder_name, VOCODER_FOLDER, VOCODER_PAGE)

    @classmethod
    def execute(cls, vocoder_name: str) -> io.NodeOutput:
        if vocoder_name == GRIFFIN_LIM:
            return io.NodeOutput(LoadedVocoder(GriffinLim()))
        path = located(VOCODER_FOLDER, vocoder_name)
        if path is None:
            raise UserError(missing("vocoder_name", vocoder_name, VOCODER_FOLDER, VOCODER_PAGE))
        return io.NodeOutput(LoadedVocoder(load_vocoder(path)))


NODES = [LoadModel, LoadVocoder]
