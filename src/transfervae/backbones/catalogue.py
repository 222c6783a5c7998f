"""What backbones there are, and what each gives: found by asking the networks, without memory for their weights."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib import import_module
from importlib.resources import files
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from transfervae.backbones import packaged, vgg
from transfervae.backbones.frozen import NETWORK_ERRORS, TRIES_MADE, first_line
from transfervae.backbones.reading import Node, Reading
from transfervae.backbones.sizes import name_sizes, nearest_sizes
from transfervae.backbones.timm import StageFeatures, check_timm_name, create_network, native_size
from transfervae.errors import ImageSizeError, TransferVAEError, UnsupportedBackboneError
from transfervae.shapes import parse_image_size

TIMM_PREFIX = "timm:"
FILE = "catalogue.json"
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
    """What a backbone gives.

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
        """What the default node gives."""
        return next(entry for entry in self.nodes if entry.node == self.default_node)

    @property
    def stride(self) -> float:
        """Pixels of the image's height for one row of the default node's grid."""
        return self.image_size[0] / self.default.grid[0]


def describe_backbone(name: str, *, image_size: int | Sequence[int] | None = None) -> BackboneDescription:
    """Ask a network for the features that it gives at every node.

    Args:
        name: "vgg19", "packaged" or "timm:NAME"; timm's names may stand without "timm:".
        image_size: Height and width of the images; the network's own if None.

    Raises:
        UnknownNameError: For a name that does not exist.
        ImageSizeError: If the network cannot take the size; the nearest sizes that it can are named.
    """
    size = None if image_size is None else parse_image_size(image_size)
    try:
        return _describe(name, size)
    except TransferVAEError:
        raise
    except NETWORK_ERRORS as error:
        if size is None:
            raise UnsupportedBackboneError(f"{name} cannot serve: {first_line(error)}.") from error
        native = _describe(name, None).image_size
        nearest = nearest_sizes(size, partial(_takes, name), native=native, tries=TRIES_MADE)
        raise ImageSizeError(
            f"{name} cannot take {size[0]}x{size[1]} images; the nearest sizes that it takes: {name_sizes(nearest)}"
            f" ({first_line(error)})."
        ) from error


def is_backbone(name: str) -> bool:
    """Whether `describe_backbone` knows a name."""
    if name in ("vgg19", "packaged"):
        return True
    return bool(import_module("timm").is_model(name.removeprefix(TIMM_PREFIX).partition(".")[0]))


def backbone_names() -> list[str]:
    """Names of all backbones that need no file of one's own, without pretrained tags."""
    return ["vgg19", "packaged", *(f"{TIMM_PREFIX}{name}" for name in import_module("timm").list_models())]


def list_backbones(pattern: str = "*") -> Iterator[BackboneDescription]:
    """Describe all backbones whose name matches, at their own image sizes.

    Those of a timm other than the one that the library's table was made with are asked one by one.

    Args:
        pattern: With wildcards as in file names; without any, a part of the name.
    """
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    known = read_catalogue()
    for name in backbone_names():
        if fnmatchcase(name, wanted) or fnmatchcase(name.removeprefix(TIMM_PREFIX), wanted):
            yield known[name] if name in known else describe_backbone(name)


@cache
def read_catalogue() -> dict[str, BackboneDescription]:
    """The library's table of timm's networks, by name."""
    rows = json.loads(files("transfervae.backbones").joinpath(FILE).read_text("utf-8"))["backbones"]
    return {row["name"]: from_row(row) for row in rows}


def to_row(description: BackboneDescription) -> dict[str, Any]:
    """The description of a network of timm as plain values; nodes in a row that give the same stand there once."""
    shapes = ((entry.channels, *entry.grid) for entry in description.nodes)
    return {**asdict(description), "nodes": [[len(list(run)), *shape] for shape, run in groupby(shapes)]}


def from_row(row: Mapping[str, Any]) -> BackboneDescription:
    """The description that `to_row` wrote."""
    shapes = [shape for count, *shape in row["nodes"] for _ in range(count)]
    nodes = tuple(NodeDescription(i, channels, (height, width)) for i, (channels, height, width) in enumerate(shapes))
    height, width = row["image_size"]
    return BackboneDescription(**{**row, "nodes": nodes, "image_size": (height, width)})


def _describe(name: str, size: Size | None) -> BackboneDescription:
    if name == "vgg19":
        return _describe_vgg19(size or VGG19_SIZE)
    if name == "packaged":
        return _describe_timm(packaged.ARCHITECTURE, name, packaged.DEFAULT_NODE, size)
    check_timm_name(architecture := name.removeprefix(TIMM_PREFIX))
    return _describe_timm(architecture, f"{TIMM_PREFIX}{architecture}", -1, size)


def _takes(name: str, size: Size) -> bool:
    try:
        _describe(name, size)
    except NETWORK_ERRORS:
        return False
    return True


def _describe_vgg19(size: Size) -> BackboneDescription:
    with torch.device("meta"):
        network = vgg.build_vgg19(Reading(vgg.NODES[-1:]))
        values = torch.zeros(1, 3, *size)
        ends = {layer: node for node, layer in vgg.LAYERS.items()}
        nodes = []
        for layer, module in network.named_children():
            values = module(values)
            if layer in ends:
                nodes.append(_describe_map(ends[layer], values))
    return BackboneDescription("vgg19", size, tuple(nodes), vgg.DEFAULT_NODE, _count(network), vgg.LICENSE)


def _describe_timm(architecture: str, name: str, default: int, size: Size | None) -> BackboneDescription:
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
    stages = StageFeatures(network, Reading((range(len(maps))[default],)))
    return tuple(_describe_map(stage, features) for stage, features in enumerate(maps)), _count(stages)


def _describe_map(node: Node, features: Tensor) -> NodeDescription:
    _, channels, height, width = features.shape
    return NodeDescription(node, channels, (height, width))


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
