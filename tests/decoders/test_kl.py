import re
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from tests.strategies import IMAGE_SIZES
from transfervae.decoders import KLDecoder, kl_decoder
from transfervae.errors import ImageSizeError, InvalidOptionError, ShapeError


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def channels_of(decoder: KLDecoder) -> list[int]:
    """Output channels of each grid's first residual block, coarsest first."""
    return [cast(Any, block)[0].conv2.out_channels for block in decoder.blocks]


def test_default_network_is_stable_diffusion_s() -> None:
    with torch.device("meta"):
        decoder = kl_decoder((4, 32, 32), 256)
    assert decoder.grids == [(32, 32), (64, 64), (128, 128), (256, 256)]
    assert channels_of(decoder) == [512, 512, 256, 128]
    # 49,490,199 with the bias of the attention's keys, which has no effect
    assert count_parameters(decoder) == 49_490_199 - 512
    assert {(norm.num_groups, norm.eps) for norm in decoder.modules() if isinstance(norm, nn.GroupNorm)} == {(32, 1e-6)}


@given(image_size=IMAGE_SIZES, doublings=st.integers(0, 4))
def test_listed_widths_fix_the_number_of_grids(image_size: tuple[int, int], doublings: int) -> None:
    widths = [8, 16, 24, 32, 40][: doublings + 1]
    with torch.device("meta"):
        decoder = kl_decoder((2, 3, 3), image_size, width=widths)
    assert channels_of(decoder) == widths[::-1]
    assert decoder.grids[-1] == image_size
    for (height, width), (next_height, next_width) in zip(decoder.grids, decoder.grids[1:], strict=False):
        assert (height, width) == (-(-next_height // 2), -(-next_width // 2))


@pytest.mark.parametrize("latent_shape", [(4,), (3, 2, 3)])
def test_unclamped_images_are_those_before_clamping(latent_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    decoder = kl_decoder(latent_shape, (13, 20), width=8)
    decoder.to_rgb.weight.data *= 20
    latents = torch.randn(2, *latent_shape)
    free = decoder.unclamped(latents)
    assert free.min() < 0
    assert free.max() > 1
    assert_close(decoder(latents), free.clamp(0, 1), rtol=0, atol=1e-6)


def test_clamped_values_still_have_a_gradient() -> None:
    decoder = kl_decoder((4,), 8, width=8)
    assert decoder.to_rgb.bias is not None
    decoder.to_rgb.bias.data += 100
    decoder(torch.randn(2, 4)).sum().backward()
    assert decoder.to_rgb.bias.grad is not None
    assert decoder.to_rgb.bias.grad.tolist() == [64.0] * 3


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("latent_shape", [(4,), (3, 2, 3)])
def test_compiles_without_a_graph_break(latent_shape: tuple[int, ...]) -> None:
    decoder = kl_decoder(latent_shape, (9, 14), width=8)
    latents = torch.randn(2, *latent_shape)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    assert_close(compiled(latents), decoder(latents))


@pytest.mark.usefixtures("without_shape_checks")
def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=re.escape("built for latents [b, 4], got [2, 5]")):
        kl_decoder((4,), 8, width=8)(torch.randn(2, 5))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "width must be a multiple of 8, got 12"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"width": [8, 12]}, "width must be a multiple of 8, got 12"),
        ({"width": []}, "at least one grid"),
        ({"width": [32, 48], "norm_groups": 32}, "width must be a multiple of 32, got 48"),
        ({"norm_groups": 0}, "norm_groups must be a whole number of at least 1"),
        ({"resnets_per_block": 0}, "resnets_per_block must be a whole number of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidOptionError, match=re.escape(message)):
        kl_decoder((4,), 8, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_shape_checks")
def test_shapes_and_sizes_that_are_none_are_refused() -> None:
    with pytest.raises(ShapeError, match="latent_shape must be"):
        kl_decoder((4, 2), 8)
    with pytest.raises(ImageSizeError):
        kl_decoder((4,), 0)
