"""What a new model starts from."""

from __future__ import annotations

import torch
from torch import nn

from ..interaction.a2v import zero_output
from ..model import DualBranchDiT


def initialise(model: DualBranchDiT, seed: int = 0) -> DualBranchDiT:
    """Seeded initial weights in place; torch's global random state is untouched.

    Matrices are Xavier-uniform with zero biases and symbols standard normal. The time embeddings start
    at a deviation of 0.02 and the outputs of both heads and of every interaction (the paper's W_o) at
    zero, so that the first prediction is 0 and the branches begin as two independent transformers.
    A face mask starts at one half everywhere. Modulations stay zero, norms one.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv3d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.normal_()
        for embedding in (model.time_embedding, model.time_embedding_audio):
            embedding[0].weight.normal_(std=0.02)
            embedding[2].weight.normal_(std=0.02)
        for head in (model.head, model.head_audio, *(block.mask_head for block in model.a2v_blocks)):
            head.head.weight.zero_()
        for block in (*model.a2v_blocks, *model.v2a_blocks):
            zero_output(block)
    return model
