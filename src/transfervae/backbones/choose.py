"""Nodes that suit a purpose, for any network by name."""

from transfervae.backbones.catalogue import describe_backbone
from transfervae.backbones.families import find_creator, resolve_backbone_name
from transfervae.backbones.feature_spec import Node

FINE = "fine"
"""The node that stands for `fine_nodes`."""

FINE_STRIDES = (8, 4, 2)
FINE_DEPTHS = 3


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
    find_creator(name)
    name, _ = resolve_backbone_name(name, weights)
    described = describe_backbone(name)
    by_stride = {round(described.image_size[0] / entry.grid[0]): entry.node for entry in described.nodes}
    found = [by_stride[stride] for stride in FINE_STRIDES if stride in by_stride]
    return found or spread_nodes(name, FINE_DEPTHS)


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
