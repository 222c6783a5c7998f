"""Chains of blocks whose activations may be computed again instead of kept."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: Iterable[nn.Module], values: Tensor, *, checkpointing: bool) -> Tensor:
    """Apply blocks one after another.

    Args:
        blocks: Each maps a tensor to a tensor.
        values: What the first one takes.
        checkpointing: Keep only what lies between blocks, and compute the rest again in the backward pass (Chen et al.
            2016): less memory, and about a third more time.
    """
    for block in blocks:
        again = checkpointing and torch.is_grad_enabled()
        values = checkpoint(block, values, use_reentrant=False) if again else block(values)
    return values
