import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate, silu

from tests.strategies import IMAGE_SIZES, LATENT_SHAPES
from transfervae.decoders import residual_decoder
from transfervae.decoders.residual import ResidualBlock
from transfervae.errors import ImageSizeError, InvalidOptionError, ShapeError


@given(latent_shape=LATENT_SHAPES, image_size=IMAGE_SIZES)
def test_grids_double_up_to_a_quarter_of_the_image(latent_shape: tuple[int, ...], image_size: tuple[int, int]) -> None:
    decoder = residual_decoder(latent_shape, image_size, width=8)
    doubled = list(zip(decoder.grids[:-1], decoder.grids[1:], strict=True))
    assert all(all(old <= new <= 2 * old for old, new in zip(*pair, strict=True)) for pair in doubled)
    assert all(side <= 4 * last for side, last in zip(image_size, decoder.grids[-1], strict=True))


@given(image_size=IMAGE_SIZES)
def test_nothing_is_computed_at_full_resolution_but_the_pixels(image_size: tuple[int, int]) -> None:
    decoder, seen = residual_decoder((4,), image_size, width=8), []
    for module in decoder.modules():
        if not list(module.children()) and module is not decoder:
            module.register_forward_hook(lambda _module, given, _made: seen.append(given[0].shape[-2:]))
    decoder(torch.zeros(1, 4))
    grids = [shape for shape in seen if len(shape) > 1 and tuple(shape) in decoder.grids]
    assert max((shape[0] * shape[1] for shape in grids), default=0) <= decoder.grids[-1][0] * decoder.grids[-1][1]


def test_blocks_pass_the_signal_through_at_the_start() -> None:
    grid = torch.randn(2, 8, 5, 5)
    assert torch.equal(ResidualBlock(8)(grid), grid)


@given(cells_of=st.tuples(st.integers(9, 20), st.integers(9, 20)))
def test_a_new_decoder_enlarges_bilinearly(cells_of: tuple[int, int]) -> None:
    height, width = cells_of
    decoder = residual_decoder((4,), (4 * height, 4 * width), width=8)
    latents = torch.randn(1, 4)
    colors = decoder.to_rgb.color(silu(decoder.stages(decoder.stem(latents))))
    expected = interpolate(colors, size=(4 * height, 4 * width), mode="bilinear").sigmoid()
    torch.testing.assert_close(decoder(latents), expected, rtol=1e-4, atol=1e-5)


def test_channels_halve_down_to_32() -> None:
    decoder = residual_decoder((4,), 256, width=192)
    assert [block.first.in_channels for block in decoder.stages if isinstance(block, ResidualBlock)] == [
        192,
        96,
        48,
        32,
    ]


def test_blocks_are_at_every_grid() -> None:
    decoder = residual_decoder((4,), 64, width=8, blocks=3)
    assert sum(isinstance(part, ResidualBlock) for part in decoder.stages) == 3 * len(decoder.grids)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"width": 12}, InvalidOptionError),
        ({"width": 0}, InvalidOptionError),
        ({"blocks": 0}, InvalidOptionError),
        ({"blocks": 1000}, InvalidOptionError),
        ({"latent_shape": (4, 4)}, ShapeError),
        ({"image_size": 0}, ImageSizeError),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], error: type[Exception]) -> None:
    arguments: dict[str, object] = {"latent_shape": (4,), "image_size": 32, **options}
    with pytest.raises(error):
        residual_decoder(**arguments)  # type: ignore[arg-type]
