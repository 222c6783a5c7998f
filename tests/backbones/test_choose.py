from collections.abc import Callable
from typing import Any

import pytest

import transfervae as tv
from transfervae.backbones import broad_nodes, describe_backbone, fine_nodes, spread_nodes
from transfervae.errors import UnknownNameError


@pytest.mark.parametrize(
    ("name", "broad", "spread"),
    [
        (
            "vgg19",
            ["block4_conv4", "block3_conv4", "block2_conv2", "block5_conv4"],
            ["block1_conv2", "block2_conv2", "block3_conv4", "block4_conv4"],
        ),
        ("packaged", [2, 1, 0, 3], [0, 1, 2, 3]),
        ("timm:resnet50", [2, 1, 0, 3], [0, 1, 2, 3]),
        ("timm:convnext_tiny", [1, 0, 2], [0, 1, 2, 3]),
    ],
)
def test_nodes_follow_from_the_grids(name: str, broad: list[Any], spread: list[Any]) -> None:
    assert fine_nodes(name) == broad[:-1]
    assert broad_nodes(name) == broad
    assert spread_nodes(name, 4) == spread


@pytest.mark.parametrize(("name", "blocks"), [("timm:vit_tiny_patch16_224", 12), ("timm:vit_small_patch8_224", 12)])
def test_nodes_of_one_grid_are_read_at_even_depths(name: str, blocks: int) -> None:
    assert fine_nodes(name) == broad_nodes(name) == [blocks // 3 - 1, 2 * blocks // 3 - 1, blocks - 1]
    assert spread_nodes(name, 4) == [2, 5, 8, 11]


@pytest.mark.parametrize(("which", "nodes_of"), [("fine", fine_nodes), ("broad", broad_nodes)])
def test_named_features_lie_on_a_grid_of_8_pixels(which: str, nodes_of: Callable[..., list[Any]]) -> None:
    for name in ("packaged", "timm:test_resnet", "vgg19"):
        weights = "default" if name == "packaged" else None
        backbone = tv.create_backbone(name, node=which, weights=weights)
        nodes = nodes_of(name)
        assert backbone.provenance.node == (nodes[0] if len(nodes) == 1 else tuple(nodes))
        widths = {entry.node: entry.channels for entry in describe_backbone(name).nodes}
        assert backbone.feature_shape((64, 96)) == (sum(widths[node] for node in nodes), 8, 12)


def test_fine_nodes_of_nothing_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'packaged'"):
        fine_nodes("pakaged")
