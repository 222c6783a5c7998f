from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VGG19_Weights, vgg19

from tests.samples import random_images
from transfervae import create_backbone
from transfervae.backbones.vgg import NODES
from transfervae.errors import UnknownNameError, WeightsMismatchError

SIZES = {1: (64, 32), 2: (128, 16), 3: (256, 8), 4: (512, 4), 5: (512, 2)}


@pytest.fixture(scope="module")
def oracle() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = vgg19(weights=None).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1)
    return network


@pytest.fixture(scope="module")
def files(oracle: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The whole network's weights in both formats; the widest classifier layer is not worth its size."""
    folder = tmp_path_factory.mktemp("weights")
    state = oracle.state_dict()
    state["classifier.0.weight"] = state["classifier.0.weight"][:, :2].clone()
    state["classifier.3.weight"] = state["classifier.3.weight"][:, :2].clone()
    torch.save(state, folder / "vgg19.pth")
    save_file(state, folder / "vgg19.safetensors")
    return {"pth": folder / "vgg19.pth", "safetensors": folder / "vgg19.safetensors"}


@pytest.fixture(scope="module")
def activations(oracle: nn.Module) -> Mapping[str, Tensor]:
    """The features at each node: after each ReLU and each pooling, in order."""
    published = VGG19_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (published.mean, published.std))
    values = (random_images() - mean) / std
    places = []
    for layer in oracle.get_submodule("features").children():
        values = layer(values).detach().clone()
        if isinstance(layer, nn.ReLU | nn.MaxPool2d):
            places.append(values.clone())
    return dict(zip(NODES, places, strict=True))


def test_there_are_21_nodes_named_in_order() -> None:
    counts = (2, 2, 4, 4, 4)
    expected = [
        name
        for block, count in enumerate(counts, start=1)
        for name in [*(f"block{block}_conv{i + 1}" for i in range(count)), f"block{block}_pool"]
    ]
    assert list(NODES) == expected
    assert len(NODES) == 21


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("node", NODES)
def test_features_at_each_node_equal_torchvision_s(
    node: str, suffix: str, files: Mapping[str, Path], activations: Mapping[str, Tensor]
) -> None:
    backbone = create_backbone("vgg19", node=node, weights=files[suffix])
    features = backbone(random_images())
    torch.testing.assert_close(features, activations[node], rtol=1e-5, atol=1e-6)
    assert backbone.out_channels == features.shape[1]


@pytest.mark.parametrize("node", NODES)
def test_channels_and_strides_are_those_of_the_paper(node: str) -> None:
    channels, side = SIZES[int(node[5])]
    expected = side // 2 if node.endswith("pool") else side
    assert create_backbone("vgg19", node=node, weights=None).feature_shape(32) == (channels, expected, expected)


def test_block5_pool_is_the_default_and_has_all_convolutions() -> None:
    backbone = create_backbone("vgg19", weights=None)
    assert backbone.provenance.node == "block5_pool"
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 20_024_384


@pytest.mark.parametrize("index", range(21))
def test_no_layer_past_the_node_is_kept(index: int, oracle: nn.Module) -> None:
    backbone = create_backbone("vgg19", node=NODES[index], weights=None)
    nodes_inside = sum(isinstance(layer, nn.ReLU | nn.MaxPool2d) for layer in backbone.network.modules())
    assert nodes_inside == index + 1
    whole = [f"{name}.weight" for name, layer in oracle.named_modules() if isinstance(layer, nn.Conv2d)]
    kept = [f"features.{name}" for name in backbone.network.state_dict() if name.endswith("weight")]
    assert kept == whole[: len(kept)]


def test_features_are_not_overwritten_by_a_relu_in_place() -> None:
    backbone = create_backbone("vgg19", node="block1_conv1", weights=None)
    images = random_images()
    before = images.clone()
    backbone(images)
    assert torch.equal(images, before)


def test_random_weights_keep_the_signal_at_every_depth() -> None:
    for node in ("block1_pool", "block5_pool"):
        assert 1e-3 < create_backbone("vgg19", node=node, weights=None)(random_images()).std() < 20


@pytest.mark.parametrize(
    ("node", "nearest"),
    [("block5pool", "block5_pool"), ("blok2_conv1", "block2_conv1"), ("BLOCK", None), (3, None)],
)
def test_an_unknown_node_suggests_the_nearest(node: str | int, nearest: str | None) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}" if nearest else "Known: block1_conv1"):
        create_backbone("vgg19", node=node, weights=None)


def test_weights_of_another_network_name_the_first_three_misfits(tmp_path: Path) -> None:
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsMismatchError, match=r"0\.weight is missing; 0\.bias is missing; 2\.weight is missing"):
        create_backbone("vgg19", node="block1_pool", weights=tmp_path / "other.pth")


def test_weights_of_a_wrong_shape_are_named_with_both_shapes(tmp_path: Path, files: Mapping[str, Path]) -> None:
    state = torch.load(files["pth"], weights_only=True)
    state["features.2.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(WeightsMismatchError, match=r"2\.bias is \[7\] instead of \[64\]\.$"):
        create_backbone("vgg19", node="block1_pool", weights=tmp_path / "wrong.pth")


def test_the_license_is_that_of_the_default_weights_alone(files: Mapping[str, Path]) -> None:
    assert create_backbone("vgg19", node="block1_pool", weights=None).license is None
    assert create_backbone("vgg19", node="block1_pool", weights=files["pth"]).license is None


def test_the_fingerprint_does_not_depend_on_the_format(files: Mapping[str, Path]) -> None:
    first, second = (create_backbone("vgg19", node="block2_pool", weights=path) for path in files.values())
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != create_backbone("vgg19", node="block2_pool", weights=None).fingerprint
    assert first.fingerprint != create_backbone("vgg19", node="block1_pool", weights=files["pth"]).fingerprint
