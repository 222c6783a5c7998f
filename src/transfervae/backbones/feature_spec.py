"""Where and how features are read: one node or several, fused to one map."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from transfervae.errors import InvalidOptionError, ShapeError, UnknownNameError
from transfervae.shapes import parse_image_size

Node: TypeAlias = str | int
Grid: TypeAlias = tuple[int, int]

HALVES = (torch.float16, torch.bfloat16)


def _concat(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(maps), dim=1)


def _sum(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(maps)).sum(dim=0)


def _mean(maps: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(maps)).mean(dim=0)


FUSIONS: Mapping[str, Callable[[Sequence[Tensor]], Tensor]] = MappingProxyType(
    {"concat": _concat, "sum": _sum, "mean": _mean}
)
"""Ways to make one map of several of the same grid; all but concat need equal widths."""


@dataclass(frozen=True)
class FeatureSpec:
    """Where and how the features of a network are read.

    Attributes:
        nodes: In the order that they are fused in; none stands for the network's default.
        fuse: A name from `FUSIONS`.
        grid: (height, width) that all maps are resampled to; the first node's if None.
        norm: Whether the network's final normalisation is applied to what is read.
    """

    nodes: tuple[Node, ...]
    fuse: str = "concat"
    grid: Grid | None = None
    norm: bool = False

    @staticmethod
    def parse(
        node: Node | Sequence[Node] | None, *, fuse: str, grid: int | str | Sequence[int] | None, norm: bool
    ) -> "FeatureSpec":
        """Check the options of `create_backbone`.

        Raises:
            InvalidOptionError: For no node, or the same one twice.
            UnknownNameError: For a way to fuse that does not exist.
            ImageSizeError: If `grid` is not one or two positive numbers.
        """
        nodes = _list_nodes(node)
        if len(set(map(str, nodes))) < len(nodes):
            raise InvalidOptionError(f"node must name no node twice, got {node!r}.")
        if fuse not in FUSIONS:
            raise UnknownNameError("way to fuse nodes", fuse, FUSIONS)
        return FeatureSpec(nodes, fuse, None if grid is None else parse_image_size(grid), norm)

    def or_at(self, default: Node) -> "FeatureSpec":
        """The spec itself, or one at a network's default node if none is named."""
        return self if self.nodes else replace(self, nodes=(default,))

    def without_norm(self, owner: str) -> "FeatureSpec":
        """The spec itself.

        Raises:
            InvalidOptionError: If it asks for a final normalisation, which the owner has not.
        """
        if self.norm:
            raise InvalidOptionError(f"{owner} has no final normalisation to apply; leave norm out.")
        return self

    @property
    def node(self) -> Node | tuple[Node, ...]:
        """The node, or all of them."""
        return self.nodes[0] if len(self.nodes) == 1 else self.nodes

    @property
    def options(self) -> dict[str, Any]:
        """What differs from reading one node as it is: plain values, for files and fingerprints."""
        options: dict[str, Any] = {}
        if len(self.nodes) > 1:
            options["fuse"] = self.fuse
        if self.grid is not None:
            options["grid"] = list(self.grid)
        if self.norm:
            options["norm"] = True
        return options

    def combine(self, maps: Sequence[Tensor]) -> Tensor:
        """Resample the nodes' maps to one grid and fuse them.

        Args:
            maps: One a node, `[b, c, h, w]`, in the order of `nodes`.

        Raises:
            ShapeError: If they are to be added and differ in width.
        """
        grid = self.grid or (maps[0].shape[-2], maps[0].shape[-1])
        resampled = [resample(features, grid) for features in maps]
        if len(resampled) == 1:
            return resampled[0]
        self.check_widths([features.shape[1] for features in resampled])
        return FUSIONS[self.fuse](resampled)

    def check_widths(self, widths: Sequence[int]) -> None:
        """Make sure that maps of these widths can be fused.

        Raises:
            ShapeError: If not.
        """
        if self.fuse != "concat" and len(set(widths)) > 1:
            named = ", ".join(f"{width} at {node}" for node, width in zip(self.nodes, widths, strict=True))
            raise ShapeError(
                f"fuse={self.fuse!r} needs nodes of equal width, got {named} channels; use fuse='concat', or others."
            )


def _list_nodes(node: object) -> tuple[Node, ...]:
    if node is None:
        return ()
    nodes = tuple(node) if isinstance(node, Sequence) and not isinstance(node, str) else (node,)
    if not nodes or not all(isinstance(entry, str | int) and not isinstance(entry, bool) for entry in nodes):
        raise InvalidOptionError(f"node must be an index or a name, or several of them, got {node!r}.")
    return nodes


def resample(features: Tensor, grid: Grid, *, mode: str = "bilinear", antialias: bool = True) -> Tensor:
    """Resample maps to a grid.

    Args:
        features: `[b, c, h, w]`.
        grid: (height, width) of the result.
        mode: "bilinear" or "bicubic".
        antialias: Average over all that falls into a cell where the grid gets coarser.
    """
    if (features.shape[-2], features.shape[-1]) == grid:
        return features
    # Where one column comes out, torch 2.15 gives wrong values on the CPU; where one row does, right ones.
    if antialias and grid[0] > grid[1] == 1:
        return resample(features.mT, (grid[1], grid[0]), mode=mode).mT
    if antialias and features.dtype in HALVES:  # torch has no such kernel for them on the CPU
        return interpolate(features.float(), size=grid, mode=mode, antialias=True).to(features.dtype)
    return interpolate(features, size=grid, mode=mode, antialias=antialias)
