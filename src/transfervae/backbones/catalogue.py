"""The catalogue of backbones, and the features of each."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import cache, lru_cache, partial
from importlib import import_module
from importlib.resources import files
from itertools import groupby
from typing import Any

from transfervae.backbones._size_search import name_sizes, nearest_sizes
from transfervae.backbones.descriptions import BackboneDescription, NodeDescription, Size
from transfervae.backbones.families import FAMILIES, TIMM_PREFIX, find_family
from transfervae.backbones.frozen import NETWORK_ERRORS, TRIES_MADE, first_line
from transfervae.errors import ImageSizeError, TransferVAEError, UnsupportedBackboneError
from transfervae.shapes import parse_image_size

FILE = "catalogue.json"

KEPT = 32
"""Descriptions that are kept: a run asks for its network's more than once, and each time costs a second or more."""


def describe_backbone(name: str, *, image_size: int | Sequence[int] | None = None) -> BackboneDescription:
    """Ask a network for the features that it gives at every node.

    Args:
        name: "vgg19", "packaged" (or "efficientnet_lite0") or "timm:NAME"; timm's names may stand without "timm:".
        image_size: Height and width of the images; the network's own if None.

    Raises:
        UnknownNameError: For a name that does not exist.
        UnsupportedBackboneError: For a name that does not tell what the network is: "auto", "diffusers_rae" and
            "keras_vgg19".
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
    if name in FAMILIES and name != TIMM_PREFIX:
        return FAMILIES[name].describe is not None
    return bool(import_module("timm").is_model(name.removeprefix(TIMM_PREFIX).partition(".")[0]))


def backbone_names() -> list[str]:
    """Names of all backbones that need no file of one's own, without pretrained tags."""
    return [name for family in FAMILIES.values() for name in family.names()]


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


@lru_cache(maxsize=KEPT)
def _describe(name: str, size: Size | None) -> BackboneDescription:
    describe = find_family(name).describe
    if describe is None:
        raise UnsupportedBackboneError(f"{name!r} alone does not tell what the network is; create it and ask that.")
    return describe(name, size)


def _takes(name: str, size: Size) -> bool:
    try:
        _describe(name, size)
    except NETWORK_ERRORS:
        return False
    return True
