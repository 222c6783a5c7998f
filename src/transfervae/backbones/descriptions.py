"""The features of a backbone at each of its nodes, found by running the network without memory for its weights."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from transfervae.backbones import vgg
from transfervae.backbones._timm import StageFeatures, create_network, native_size
from transfervae.backbones.feature_spec import FeatureSpec, Node

VGG19_SIZE = (224, 224)

Size = tuple[int, int]


@dataclass(frozen=True)
class NodeDescription:
    """One place where a backbone can be read.

    Attributes:
        node: As `create_backbone` takes it.
        channels: Of the features there.
        grid: Their (height, width).
    """

    node: Node
    channels: int
    grid: Size


@dataclass(frozen=True)
class BackboneDescription:
    """The features of a backbone.

    Attributes:
        name: As `create_backbone` takes it.
        image_size: (height, width) that the grids are for; the network's own unless another was asked for.
        nodes: All places where it can be read, but for modules by name.
        default_node: Which of them is read if none is named.
        parameters: Number of those that are kept at the default node.
        license: Licence of the default weights; "unknown" where the publisher names none, None without any.
    """

    name: str
    image_size: Size
    nodes: tuple[NodeDescription, ...]
    default_node: Node
    parameters: int
    license: str | None

    @property
    def default(self) -> NodeDescription:
        """The features at the default node."""
        return next(entry for entry in self.nodes if entry.node == self.default_node)

    @property
    def stride(self) -> float:
        """Pixels of the image's height for one row of the default node's grid."""
        return self.image_size[0] / self.default.grid[0]


def describe_vgg19(_name: str, size: Size | None) -> BackboneDescription:
    """Ask torchvision's VGG19 for the features at its nodes; arguments as in `Family`."""
    size = size or VGG19_SIZE
    with torch.device("meta"):
        network = vgg.build_vgg19(FeatureSpec(vgg.NODES[-1:]))
        values = torch.zeros(1, 3, *size)
        ends = {layer: node for node, layer in vgg.LAYERS.items()}
        nodes = []
        for layer, module in network.named_children():
            values = module(values)
            if layer in ends:
                nodes.append(_describe_map(ends[layer], values))
    return BackboneDescription("vgg19", size, tuple(nodes), vgg.DEFAULT_NODE, _count(network), vgg.LICENSE)


def describe_timm(architecture: str, name: str, default: int, size: Size | None) -> BackboneDescription:
    """Ask a network of timm for the features at its stages.

    Args:
        architecture: timm's name.
        name: What the backbone is called.
        default: Index of the stage that is read if none is named.
        size: (height, width) of the images; the network's own if None.
    """
    preprocessing = import_module("timm").get_pretrained_cfg(architecture).to_dict()
    size = size or native_size(architecture)
    try:
        with torch.device("meta"):
            nodes, kept = _run(architecture, default, size)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        nodes, kept = _run(architecture, default, size)  # a few networks read values on their way
    is_published = preprocessing.get("hf_hub_id") or preprocessing.get("url")
    license_name = str(preprocessing.get("license") or "unknown") if is_published else None
    return BackboneDescription(name, size, nodes, nodes[default].node, kept, license_name)


@torch.no_grad()
def _run(architecture: str, default: int, size: Size) -> tuple[tuple[NodeDescription, ...], int]:
    """The features at every stage, and the number of parameters up to the default one."""
    network: Any = create_network(architecture, size)
    maps = network.forward_intermediates(torch.zeros(1, 3, *size), output_fmt="NCHW", intermediates_only=True)
    stages = StageFeatures(network, FeatureSpec((range(len(maps))[default],)))
    return tuple(_describe_map(stage, features) for stage, features in enumerate(maps)), _count(stages)


def _describe_map(node: Node, features: Tensor) -> NodeDescription:
    _, channels, height, width = features.shape
    return NodeDescription(node, channels, (height, width))


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
