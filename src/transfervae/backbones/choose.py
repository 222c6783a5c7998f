"""Nodes that suit a purpose, for any network by name."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from transfervae.backbones.catalogue import describe_backbone
from transfervae.backbones.families import find_creator, resolve_backbone_name
from transfervae.backbones.feature_spec import Node

FINE_STRIDES = (8, 4, 2)
BROAD_STRIDES = (*FINE_STRIDES, 16)
DEPTHS = 3


def fine_nodes(name: str, weights: object = "default") -> list[Node]:
    """Nodes for pictures rather than meaning: the last one at each stride of 8, 4 and 2 pixels, the coarsest first.

    Maps of several nodes take the first one's grid, so that their features lie on that of stride 8. A network with one
    grid, such as a vision transformer, is read at three even depths.

    Args:
        name: As `create_backbone` takes it; "auto" too.
        weights: As `create_backbone` takes them; they decide what "auto" is.

    Raises:
        UnknownNameError: For a name that does not exist.
        UnsupportedBackboneError: For a name that does not tell what the network is.
    """
    return _last_nodes(name, weights, FINE_STRIDES)


def broad_nodes(name: str, weights: object = "default") -> list[Node]:
    """Nodes for pictures and meaning: those of `fine_nodes`, and the last one at a stride of 16 pixels.

    Args:
        name: As `create_backbone` takes it; "auto" too.
        weights: As `create_backbone` takes them; they decide what "auto" is.

    Raises:
        UnknownNameError: For a name that does not exist.
        UnsupportedBackboneError: For a name that does not tell what the network is.
    """
    return _last_nodes(name, weights, BROAD_STRIDES)


def spread_nodes(name: str, count: int) -> list[Node]:
    """The last node at each of a network's finest grids; of a network with one grid, nodes at even depths.

    Args:
        name: As `describe_backbone` takes it.
        count: How many; fewer if the network has fewer.

    Raises:
        UnknownNameError: For a name that does not exist.
        UnsupportedBackboneError: For a name that does not tell what the network is.
    """
    find_creator(name)
    nodes = describe_backbone(name).nodes
    last = {entry.grid: entry.node for entry in nodes}
    if len(last) > 1:
        return list(last.values())[:count]
    places = sorted({round((number + 1) * len(nodes) / count) - 1 for number in range(count)})
    return [nodes[place].node for place in places if place >= 0]


def _last_nodes(name: str, weights: object, strides: Sequence[int]) -> list[Node]:
    """The last node at each stride, in pixels, that a network has; nodes at even depths of one with a single grid."""
    find_creator(name)
    name, _ = resolve_backbone_name(name, weights)
    described = describe_backbone(name)
    by_stride = {round(described.image_size[0] / entry.grid[0]): entry.node for entry in described.nodes}
    is_uniform = len({entry.grid for entry in described.nodes}) == 1
    found = [] if is_uniform else [by_stride[stride] for stride in strides if stride in by_stride]
    return found or spread_nodes(name, DEPTHS)


NAMED_NODES: Mapping[str, Callable[..., list[Node]]] = MappingProxyType({"fine": fine_nodes, "broad": broad_nodes})
"""Nodes by what they are for; each takes a backbone's name and weights."""
