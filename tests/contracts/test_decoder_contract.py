import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from tests.strategies import BATCH_SIZES, IMAGE_SIZES, LATENT_SHAPES, SEEDS
from transfervae.decoders import DECODERS

each_decoder = pytest.mark.parametrize("kind", DECODERS)
SIDES = st.integers(9, 33)


@each_decoder
@given(latent_shape=LATENT_SHAPES, image_size=IMAGE_SIZES, batch=BATCH_SIZES, width=st.sampled_from([8, 24, 40]))
def test_output_is_of_the_exact_size_within_zero_and_one(
    kind: str, latent_shape: tuple[int, ...], image_size: tuple[int, int], batch: int, width: int
) -> None:
    decoder = DECODERS[kind](latent_shape, image_size, width=width)
    images = decoder(20 * torch.randn(batch, *latent_shape))
    assert images.shape == (batch, 3, *image_size)
    assert ((images >= 0) & (images <= 1)).all()


@each_decoder
@given(latent_shape=LATENT_SHAPES, image_size=IMAGE_SIZES)
def test_every_parameter_receives_a_finite_gradient(
    kind: str, latent_shape: tuple[int, ...], image_size: tuple[int, int]
) -> None:
    decoder = DECODERS[kind](latent_shape, image_size, width=16)
    decoder(torch.randn(2, *latent_shape)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in decoder.parameters())


@each_decoder
@given(image_size=st.tuples(SIDES, SIDES), latent_shape=st.sampled_from([(4,), (3, 2, 2), (3, 3, 2)]))
def test_no_parameter_is_without_effect(kind: str, image_size: tuple[int, int], latent_shape: tuple[int, ...]) -> None:
    decoder = DECODERS[kind](latent_shape, image_size, width=32)
    for value in decoder.parameters():
        if not value.any():  # as a layer that starts at 0, behind which nothing has an effect yet
            nn.init.normal_(value, std=0.1)
    images = decoder(torch.randn(2, *latent_shape))
    (images * torch.rand_like(images)).sum().backward()
    dead = [name for name, value in decoder.named_parameters() if value.grad is None or not value.grad.any()]
    assert dead == []


@each_decoder
@given(latent_shape=LATENT_SHAPES, image_size=st.tuples(SIDES, SIDES), seed=SEEDS)
def test_items_of_a_batch_do_not_mix(
    kind: str, latent_shape: tuple[int, ...], image_size: tuple[int, int], seed: int
) -> None:
    decoder = DECODERS[kind](latent_shape, image_size, width=8)
    latents = torch.randn(3, *latent_shape, generator=torch.Generator().manual_seed(seed))
    alone = torch.cat([decoder(latents[i : i + 1]) for i in range(3)])
    assert_close(decoder(latents), alone, rtol=1e-4, atol=1e-5)


@each_decoder
@given(latent_shape=LATENT_SHAPES, image_size=IMAGE_SIZES, width=st.sampled_from([8, 16]))
def test_spec_builds_the_same_decoder_again(
    kind: str, latent_shape: tuple[int, ...], image_size: tuple[int, int], width: int
) -> None:
    decoder = DECODERS[kind](latent_shape, image_size, width=width)
    spec = DECODERS.spec_of(decoder)
    assert spec is not None
    again = DECODERS.build(json.loads(json.dumps(spec.to_dict())), latent_shape, image_size)
    again.load_state_dict(decoder.state_dict())
    latents = torch.randn(2, *latent_shape)
    assert DECODERS.spec_of(again) == spec
    assert spec.options["width"] == width
    assert torch.equal(again(latents), decoder(latents))


@each_decoder
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_images_are_float32_for_latents_of_any_precision(kind: str, dtype: torch.dtype) -> None:
    assert DECODERS[kind]((4,), 16, width=8)(torch.zeros(2, 4, dtype=dtype)).dtype == torch.float32


@each_decoder
def test_images_are_float32_under_autocast(kind: str) -> None:
    decoder = DECODERS[kind]((4,), 16, width=8)
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder(torch.zeros(2, 4)).dtype == torch.float32


@each_decoder
def test_evaluation_mode_makes_no_difference(kind: str) -> None:
    decoder = DECODERS[kind]((4,), 16, width=8)
    latents = torch.randn(2, 4)
    assert torch.equal(decoder.train()(latents), decoder.eval()(latents))


@each_decoder
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (17, 5)])
def test_an_image_one_pixel_wide_still_depends_on_the_latent(kind: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    decoder = DECODERS[kind]((4,), size, width=32)
    first, second = decoder(torch.randn(2, 4))
    assert not torch.allclose(first, second, atol=1e-4)
