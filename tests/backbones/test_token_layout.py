from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import dropout, pad

from transfervae import FrozenBackbone, create_backbone
from transfervae.errors import ImageSizeError, InvalidOptionError, UnsupportedBackboneError

HALF: Any = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


class ChannelsLast(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, kernel_size=4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        grid: Tensor = self.convolution(images)
        return grid.permute(0, 2, 3, 1)


class PaddedTokens(nn.Module):
    def __init__(self, prefix: int, patch: int = 16) -> None:
        super().__init__()
        self.prefix, self.patch = prefix, patch
        self.embedding = nn.Conv2d(3, 8, kernel_size=patch, stride=patch)

    def grid(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        grid: Tensor = self.embedding(pad(images, (0, -width % self.patch, 0, -height % self.patch)))
        return grid

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.grid(images).flatten(2).mT
        return torch.cat([tokens.new_zeros(len(tokens), self.prefix, 8), tokens], dim=1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: Tensor) -> Any:
        self.get_buffer("count").add_(1)
        return self.convolution(images)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, kernel_size=4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        return dropout(self.convolution(images), 0.5, training=True)


@given(
    channels=st.integers(1, 40),
    stride=st.sampled_from([1, 2, 3, 8, 16]),
    size=st.tuples(st.integers(17, 90), st.integers(17, 90)),
)
def test_channels_first_is_seen_whatever_the_numbers(channels: int, stride: int, size: tuple[int, int]) -> None:
    network = nn.Conv2d(3, channels, kernel_size=3, stride=stride, padding=1)
    backbone = FrozenBackbone.from_module(network, **HALF)
    images = torch.rand(1, 3, *size)
    assert torch.equal(backbone(images), network(backbone.normalise(images)))


@given(cells=st.integers(1, 12))
def test_channels_last_is_seen_where_all_sides_are_equal(cells: int) -> None:
    network = ChannelsLast(cells)
    backbone = FrozenBackbone.from_module(network, **HALF)
    images = torch.rand(1, 3, 4 * cells, 4 * cells)
    assert torch.equal(backbone(images), network(backbone.normalise(images)).permute(0, 3, 1, 2))


@given(prefix=st.integers(0, 8), size=st.tuples(st.integers(16, 130), st.integers(16, 130)))
def test_prefix_tokens_are_seen_also_where_images_are_padded(prefix: int, size: tuple[int, int]) -> None:
    network = PaddedTokens(prefix)
    backbone = FrozenBackbone.from_module(network, **HALF)
    images = torch.rand(1, 3, *size)
    grid = network.grid(backbone.normalise(images))
    assert torch.equal(backbone(images), grid)


@pytest.mark.parametrize(
    ("name", "node", "size"),
    [
        ("test_convnext", "stages.0.blocks.0.norm", (96, 96)),
        ("resnet18", "conv1", (86, 57)),
        ("test_vit", "blocks.2", (64, 96)),
    ],
)
def test_layers_of_timm_are_laid_out_alike_at_every_size(name: str, node: str, size: tuple[int, int]) -> None:
    backbone = create_backbone(f"timm:{name}", node=node, weights=None)
    assert backbone.feature_shape(size)[0] == backbone.feature_shape((64, 128))[0] == backbone.out_channels


@pytest.mark.parametrize(
    ("network", "reason"), [(Counting(), "changes the buffer count"), (Dropping(), "other features for the same")]
)
def test_a_network_that_cannot_be_frozen_is_refused(network: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedBackboneError, match=reason):
        FrozenBackbone.from_module(network, **HALF).feature_shape(32)


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, (1.0,) * 3), ((0.5,), (1.0,) * 3), ((0.5,) * 3, (0, 0, 0)), ("abc", (1.0,) * 3)]
)
def test_normalisation_must_be_three_numbers(mean: Any, std: Any) -> None:
    with pytest.raises(InvalidOptionError, match="three finite numbers"):
        FrozenBackbone.from_module(nn.Conv2d(3, 4, kernel_size=3), mean=mean, std=std)


@pytest.mark.usefixtures("without_shape_checks")
def test_only_modules_can_be_frozen() -> None:
    function: Any = torch.relu
    with pytest.raises(InvalidOptionError, match=r"torch\.nn\.Module"):
        FrozenBackbone.from_module(function, **HALF)


@pytest.mark.usefixtures("without_shape_checks")
def test_tokens_that_timm_lays_out_on_a_grid_not_theirs_are_refused() -> None:
    backbone = create_backbone("timm:vit_small_r26_s32_224", node=1, weights=None)
    with pytest.raises(ImageSizeError, match="its tokens do not fill the grid"):
        backbone.feature_shape(144)
    assert backbone.feature_shape((128, 160)) == (384, 4, 5)
