"""Other libraries' names of the same tensors, where one of ours may be several of theirs stacked."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from transfervae.backbones._weights import check_fit

Names: TypeAlias = Mapping[str, tuple[str, ...]]
"""Our name to theirs: one, or those of the parts that ours stacks along the first axis."""


def to_theirs(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Give our tensors their names, stacked ones cut into their parts.

    Args:
        state: Our tensors; those without a name of theirs are left out.
        names: Our names to theirs.

    Returns:
        The tensors by their names; parts share memory with ours.
    """
    theirs: dict[str, Tensor] = {}
    for ours, parts in names.items():
        theirs |= zip(parts, state[ours].chunk(len(parts)), strict=True)
    return theirs


def load_theirs(network: nn.Module, state: Mapping[str, Tensor], names: Names, *, owner: str) -> None:
    """Load their tensors into our network, all or nothing.

    Args:
        network: Every tensor of its state dict must have a name of theirs.
        state: Their tensors by their names.
        names: Our names to theirs.
        owner: Whose weights they should be, for the message.

    Raises:
        WeightsMismatchError: If names or shapes differ; the first three misfits are named, by their names, and nothing
            is loaded.
    """
    check_fit(to_theirs(network.state_dict(), names), state, owner=owner)
    network.load_state_dict({ours: torch.cat([state[part] for part in parts]) for ours, parts in names.items()})


def with_ends(names: Mapping[str, str | tuple[str, ...]]) -> Names:
    """Layers' names to those of their weights and biases.

    Args:
        names: Our layers to theirs, or to several that ours stacks.
    """
    layers = {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in names.items()}
    return {
        f"{ours}.{end}": tuple(f"{part}.{end}" for part in parts)
        for ours, parts in layers.items()
        for end in ("weight", "bias")
    }
