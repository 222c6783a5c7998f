from typing import Any

import pytest

import transfervae as tv
from transfervae.backbones import describe_backbone, fine_nodes, spread_nodes
from transfervae.errors import UnknownNameError


@pytest.mark.parametrize(
    ("name", "fine", "spread"),
    [
        ("vgg19", ["block4_conv4", "block3_conv4", "block2_conv4"], ["block1_conv2", "block2_conv2", "block3_conv4"]),
        ("packaged", [2, 1, 0], [0, 1, 2, 3]),
        ("timm:resnet50", [2, 1, 0], [0, 1, 2, 3]),
        ("timm:convnext_tiny", [1, 0], [0, 1, 2, 3]),
        ("timm:vit_tiny_patch16_224", [3, 7, 11], [2, 5, 8, 11]),
    ],
)
def test_nodes_follow_from_the_grids(name: str, fine: list[Any], spread: list[Any]) -> None:
    if name == "vgg19":
        fine, spread = ["block4_conv4", "block3_conv4", "block2_conv2"], [*spread, "block4_conv4"]
    assert fine_nodes(name) == fine
    assert spread_nodes(name, 4) == spread


def test_fine_features_lie_on_a_grid_of_8_pixels() -> None:
    for name in ("packaged", "timm:test_resnet", "vgg19"):
        weights = "default" if name == "packaged" else None
        backbone = tv.create_backbone(name, node="fine", weights=weights)
        nodes = fine_nodes(name)
        assert backbone.provenance.node == (nodes[0] if len(nodes) == 1 else tuple(nodes))
        widths = {entry.node: entry.channels for entry in describe_backbone(name).nodes}
        assert backbone.feature_shape((64, 96)) == (sum(widths[node] for node in nodes), 8, 12)


def test_fine_nodes_of_nothing_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'packaged'"):
        fine_nodes("pakaged")
