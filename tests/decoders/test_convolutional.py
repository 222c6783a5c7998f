from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.strategies import IMAGE_SIZES, LATENT_SHAPES, MAP_SHAPES
from transfervae.decoders import DECODERS, Decoder, pixelshuffle_decoder, resize_decoder
from transfervae.decoders.convolutional import GROUP_CHANNELS
from transfervae.errors import ImageSizeError, InvalidOptionError, ShapeError

SIDES = st.integers(9, 33)


@given(latent_shape=LATENT_SHAPES, image_size=IMAGE_SIZES)
def test_each_stage_at_most_doubles_the_grid(latent_shape: tuple[int, ...], image_size: tuple[int, int]) -> None:
    decoder = resize_decoder(latent_shape, image_size, width=16)
    grid = decoder.stem(torch.zeros(1, *latent_shape))
    for stage in decoder.stages:
        before, grid = grid.shape[-2:], stage(grid)
        assert all(old <= new <= 2 * old for old, new in zip(before, grid.shape[-2:], strict=True))
    assert tuple(grid.shape[-2:]) == image_size


@given(image_size=IMAGE_SIZES)
def test_the_grid_of_a_vector_starts_at_eight_cells_a_side_or_fewer(image_size: tuple[int, int]) -> None:
    decoder = resize_decoder((4,), image_size, width=16)
    assert max(decoder.stem(torch.zeros(1, 4)).shape[-2:]) <= 8


@pytest.mark.parametrize("side", [16, 64])
def test_a_map_of_matching_ratio_is_not_resampled(side: int) -> None:
    decoder = resize_decoder((4, side // 8, side // 8), side, width=8)
    assert decoder.stem(torch.zeros(1, 4, side // 8, side // 8)).shape[-2:] == (side // 8, side // 8)


@given(width=st.integers(1, 16))
def test_channels_start_at_width_and_halve_down_to_16(width: int) -> None:
    decoder = resize_decoder((4,), 128, width=32 * width)
    channels = [norm.num_channels for norm in decoder.modules() if isinstance(norm, nn.GroupNorm)]
    assert channels[0] == 32 * width
    assert all(16 <= after <= before for before, after in pairwise(channels))
    assert all(count % GROUP_CHANNELS == 0 for count in channels)


@given(latent_shape=st.one_of(st.just((4,)), MAP_SHAPES), image_size=st.tuples(SIDES, SIDES))
def test_pixelshuffle_starts_without_checkerboard(latent_shape: tuple[int, ...], image_size: tuple[int, int]) -> None:
    decoder = pixelshuffle_decoder(latent_shape, image_size, width=16)
    grid = decoder.stem(torch.randn(2, *latent_shape))
    for stage in decoder.stages:
        assert isinstance(stage, nn.Sequential)
        assert_cells_are_flat(stage[0](grid))
        grid = stage(grid)


def assert_cells_are_flat(grid: Tensor) -> None:
    height, width = grid.shape[-2:]
    corners = grid[..., ::2, ::2]
    flat = corners.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)[..., :height, :width]
    torch.testing.assert_close(grid, flat)


def test_pixelshuffle_can_learn_sub_pixels() -> None:
    decoder = pixelshuffle_decoder((4,), 16, width=16)
    decoder(torch.randn(2, 4)).square().sum().backward()
    convolution = next(module for module in decoder.stages.modules() if isinstance(module, nn.Conv2d))
    assert convolution.weight.grad is not None
    assert not torch.equal(convolution.weight.grad[0], convolution.weight.grad[1])


@pytest.mark.parametrize("kind", DECODERS)
def test_kernels_of_transposed_convolutions_are_multiples_of_their_stride(kind: str) -> None:
    for module in DECODERS[kind]((4,), 32, width=8).modules():
        if isinstance(module, nn.ConvTranspose2d):
            assert all(kernel % stride == 0 for kernel, stride in zip(module.kernel_size, module.stride, strict=True))


@pytest.mark.parametrize("latent_shape", [(), (4, 2), (1, 2, 3, 4), (0,), (4, 0, 2)])
def test_a_latent_shape_that_cannot_be_is_refused(latent_shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="latent_shape"):
        resize_decoder(latent_shape, 16)


@pytest.mark.parametrize("width", [0, -8, 4, 12, 33])
def test_a_width_that_is_no_multiple_of_eight_is_refused(width: int) -> None:
    with pytest.raises(InvalidOptionError, match="width"):
        resize_decoder((4,), 16, width=width)


@pytest.mark.parametrize("size", [0, (16, 0), (16, 16, 16), (-1, 4)])
def test_an_image_size_that_cannot_be_is_refused(size: int | tuple[int, ...]) -> None:
    with pytest.raises(ImageSizeError):
        resize_decoder((4,), size)


@pytest.mark.parametrize("shape", [(2, 5), (2, 4, 1, 1), (2,)])
def test_latents_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\[b, 4\]"):
        resize_decoder((4,), 16, width=8)(torch.zeros(shape))


def test_the_table_of_decoders_is_read_only() -> None:
    table: Any = DECODERS
    with pytest.raises(TypeError):
        table["mine"] = Decoder
