import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.strategies import SEEDS
from transfervae.decoders import ViTDecoder, vit_decoder
from transfervae.decoders.vit import SIZES, Architecture, sine_cosine_positions
from transfervae.errors import InvalidOptionError, ShapeError, TransferVAEError, UnknownNameError

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))


def randomise(decoder: ViTDecoder, seed: int = 0) -> ViTDecoder:
    """Give every parameter random values large enough to tell a mistake, the norms' and biases' too."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return decoder


def position_by_definition(width: int, row: float, column: float) -> Tensor:
    values = []
    for coordinate in (column, row):
        angles = [coordinate / 10_000 ** (4 * i / width) for i in range(width // 4)]
        values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return torch.tensor(values)


def images_of_torch(decoder: ViTDecoder, latents: Tensor) -> Tensor:
    """The same with torch's own transformer layers, and pixels placed one patch at a time; maps only."""
    width, mlp_width, heads, _ = decoder.architecture
    rows, columns = decoder.grid
    position = torch.stack(
        [position_by_definition(width, row, column) for row in range(rows) for column in range(columns)]
    )
    tokens = decoder.embed(latents.flatten(2).transpose(1, 2)) + position
    tokens = torch.cat([decoder.class_token.repeat(len(latents), 1, 1), tokens], dim=1)
    for block in decoder.blocks:
        layer = nn.TransformerEncoderLayer(
            width, heads, mlp_width, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True, norm_first=True
        )
        own = dict(block.state_dict())
        renamed = {"self_attn.in_proj_weight": own["qkv.weight"], "self_attn.in_proj_bias": own["qkv.bias"]}
        names = {"self_attn.out_proj": "out", "linear1": "expand", "linear2": "contract", "norm1": "norm1"}
        for theirs, ours in {**names, "norm2": "norm2"}.items():
            renamed |= {f"{theirs}.{end}": own[f"{ours}.{end}"] for end in ("weight", "bias")}
        layer.load_state_dict(renamed)
        tokens = layer(tokens)
    patches = decoder.predict(decoder.norm(tokens))[:, 1:]
    (height, across), (high, wide) = decoder.patch, decoder.image_size
    canvas = torch.zeros(len(latents), 3, rows * height, columns * across)
    for index in range(rows * columns):
        top, left = index // columns * height, index % columns * across
        pixels = patches[:, index].view(-1, height, across, 3).permute(0, 3, 1, 2)
        canvas[:, :, top : top + height, left : left + across] = pixels
    return canvas[:, :, :high, :wide] * decoder.std + decoder.mean


@given(grid=GRIDS, patch=GRIDS, cut=st.booleans(), seed=SEEDS)
def test_images_are_those_of_torch_s_transformer(
    grid: tuple[int, int], patch: tuple[int, int], seed: int, *, cut: bool
) -> None:
    height, width = (cells * side - (cut and cells > 1) for cells, side in zip(grid, patch, strict=True))
    decoder = vit_decoder((5, *grid), (height, width), width=24, depth=2, heads=3, mlp_width=20)
    randomise(decoder, seed)
    latents = torch.randn(2, 5, *grid)
    expected = images_of_torch(decoder, latents)
    assert decoder.patch == patch
    assert_close(decoder.unclamped(latents), expected, rtol=1e-4, atol=1e-5)
    assert_close(decoder(latents), expected.clamp(0, 1), rtol=1e-4, atol=1e-5)


@given(width=st.sampled_from([4, 12, 32]), grid=GRIDS)
def test_positions_count_columns_then_rows(width: int, grid: tuple[int, int]) -> None:
    positions = sine_cosine_positions(width, grid, "rae")
    scaled = sine_cosine_positions(width, grid, "diffusers")
    for index in range(grid[0] * grid[1]):
        row, column = divmod(index, grid[1])
        assert_close(positions[index], position_by_definition(width, row, column), rtol=0, atol=1e-6)
        expected = position_by_definition(width, row * 16 / grid[0], column * 16 / grid[1])
        assert_close(scaled[index], expected, rtol=0, atol=1e-5)


def test_the_two_conventions_agree_for_16_tokens_only() -> None:
    first, second = (sine_cosine_positions(32, (16, 16), convention) for convention in ("rae", "diffusers"))
    assert torch.equal(first, second)
    first, second = (sine_cosine_positions(32, (32, 32), convention) for convention in ("rae", "diffusers"))
    assert (first - second).abs().max() > 1


@pytest.mark.parametrize("size", ["s", "b", "l", "xl"])
def test_a_named_size_has_the_parameters_of_its_numbers(size: str) -> None:
    with torch.device("meta"):
        decoder = vit_decoder((16, 16, 16), 256, size=size)
    width, mlp_width, _, layers = SIZES[size]
    attention, perceptron, norms = 4 * width * (width + 1), 2 * width * mlp_width + mlp_width + width, 4 * width
    ends = (16 + 1) * width + width + 2 * width + (width + 1) * 3 * 16 * 16
    assert len(decoder.blocks) == layers
    total = layers * (attention + perceptron + norms) + ends
    assert sum(value.numel() for value in decoder.parameters()) == total


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Architecture(384, 1536, 6, 12)),
        ({"width": 384}, Architecture(384, 1536, 6, 12)),
        ({"width": 40}, Architecture(40, 160, 1, 12)),
        ({"width": 96, "depth": 3}, Architecture(96, 384, 2, 3)),
        ({"width": 192, "heads": 4, "mlp_width": 100}, Architecture(192, 100, 4, 12)),
        ({"size": "xl", "width": 1152, "depth": 2}, Architecture(1152, 4096, 16, 2)),
    ],
)
def test_what_is_left_out_follows_from_size_and_width(options: dict[str, Any], expected: Architecture) -> None:
    with torch.device("meta"):
        assert vit_decoder((4, 2, 2), 8, **options).architecture == expected


@pytest.mark.parametrize(
    ("latent_shape", "image_size", "grid", "patch"),
    [
        ((8,), (256, 128), (16, 8), (16, 16)),
        ((8,), (40, 3), (8, 3), (5, 1)),
        ((8,), (1, 1), (1, 1), (1, 1)),
        ((8, 4, 3), (256, 224), (4, 3), (64, 75)),
        ((8, 6, 6), (2, 9), (6, 6), (1, 2)),
    ],
)
def test_patches_cover_the_image(
    latent_shape: tuple[int, ...], image_size: tuple[int, int], grid: tuple[int, int], patch: tuple[int, int]
) -> None:
    decoder = vit_decoder(latent_shape, image_size, width=8, depth=1)
    assert (decoder.grid, decoder.patch) == (grid, patch)


def test_checkpoints_hold_parameters_alone() -> None:
    decoder = vit_decoder((4, 2, 2), 8, width=8, depth=1)
    assert set(decoder.state_dict()) == {name for name, _ in decoder.named_parameters()}


def test_gradients_reach_pixels_outside_the_range() -> None:
    decoder = vit_decoder((4, 2, 2), 8, width=8, depth=1)
    nn.init.constant_(decoder.predict.bias, 50.0)
    images = decoder(torch.randn(2, 4, 2, 2))
    images.sum().backward()
    assert (images == 1).all()
    assert decoder.predict.bias.grad is not None
    assert (decoder.predict.bias.grad > 0).all()


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("latent_shape", [(4,), (3, 2, 3)])
def test_compiles_without_a_graph_break(latent_shape: tuple[int, ...]) -> None:
    decoder = vit_decoder(latent_shape, (9, 14), width=8, depth=2)
    latents = torch.randn(2, *latent_shape)
    compiled = torch.compile(decoder, fullgraph=True, backend="aot_eager")
    assert_close(compiled(latents), decoder(latents))


@pytest.mark.usefixtures("without_shape_checks")
def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=re.escape("built for latents [b, 4, 2, 2], got [2, 4, 2, 3]")):
        vit_decoder((4, 2, 2), 8, width=8, depth=1)(torch.randn(2, 4, 2, 3))


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": "xxl"}, UnknownNameError, "Unknown size of the vit decoder 'xxl'. Did you mean 'xl'?"),
        ({"positions": "rea"}, UnknownNameError, "Did you mean 'rae'?"),
        ({"width": 10}, InvalidOptionError, "width must be a multiple of 4, got 10"),
        ({"width": 0}, InvalidOptionError, "width must be a whole number of at least 1, got 0"),
        ({"depth": 0}, InvalidOptionError, "depth must be a whole number of at least 1, got 0"),
        ({"mlp_width": -1}, InvalidOptionError, "mlp_width must be a whole number"),
        ({"heads": 5}, InvalidOptionError, "width must be a multiple of heads, got 384 and 5"),
        ({"mean": (0.5, 0.5)}, InvalidOptionError, "mean and std must be three numbers each"),
        ({"latent_shape": (4, 4)}, ShapeError, "latent_shape must be (d,) or (c, h, w)"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], error: type[TransferVAEError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        vit_decoder(**{"latent_shape": (4, 2, 2), "image_size": 8, **options})
