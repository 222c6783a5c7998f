import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import SEEDS, VECTOR_SHAPES, gaussians, image_pairs
from transfervae import DiagonalGaussian, VAEOutput, losses
from transfervae.errors import InvalidOptionError, ShapeError, UnknownNameError

Array = NDArray[np.float64]
POSTERIORS = gaussians(latent_shapes=VECTOR_SHAPES, dtype=torch.float32)


def squares(first: Tensor, second: Tensor) -> Array:
    difference: Array = first.double().numpy() - second.double().numpy()
    return difference.reshape(len(difference), -1) ** 2


def naive_mse(first: Tensor, second: Tensor) -> Array:
    values: Array = np.mean(squares(first, second), axis=1)
    return values


def naive_rmse(first: Tensor, second: Tensor) -> Array:
    return np.sqrt(naive_mse(first, second) + 1e-8)


def naive_l1(first: Tensor, second: Tensor) -> Array:
    values: Array = np.mean(np.sqrt(squares(first, second)), axis=1)
    return values


def naive_nll(first: Tensor, second: Tensor, log_sigma: float) -> Array:
    errors = squares(first, second)
    density = -errors / (2 * math.exp(2 * log_sigma)) - log_sigma - 0.5 * math.log(2 * math.pi)
    values: Array = -np.sum(density, axis=1)
    return values


def naive_calibrated_nll(first: Tensor, second: Tensor) -> Array:
    log_rmse = 0.5 * math.log(np.mean(squares(first, second)) + 1e-20)
    return naive_nll(first, second, -6 + math.log1p(math.exp(log_rmse + 6)))


NAIVE: dict[str, Callable[[Tensor, Tensor], Array]] = {
    "mse": naive_mse,
    "rmse": naive_rmse,
    "l1": naive_l1,
    "gaussian_nll": naive_calibrated_nll,
}


def output_of(reconstruction: Tensor, posterior: DiagonalGaussian) -> VAEOutput:
    return VAEOutput(reconstruction, posterior, posterior.mode())


def output_and_images(posterior: DiagonalGaussian, seed: int = 0) -> tuple[VAEOutput, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, len(posterior.mean), 3, 4, 5, generator=generator)
    return output_of(first, posterior), second


@pytest.mark.parametrize("name", NAIVE)
@given(pair=image_pairs())
def test_term_agrees_with_its_formula_in_float64(name: str, pair: tuple[Tensor, Tensor]) -> None:
    term = losses.RECONSTRUCTIONS[name].loss(*pair)
    assert term.shape == (len(pair[0]),)
    assert_close(term.double(), torch.from_numpy(NAIVE[name](*pair)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAIVE)
@given(pair=image_pairs())
def test_term_is_computed_in_float32_for_half_precision(name: str, pair: tuple[Tensor, Tensor]) -> None:
    first, second = (images.bfloat16() for images in pair)
    term = losses.RECONSTRUCTIONS[name].loss(first, second)
    assert term.dtype == torch.float32
    assert_close(term.double(), torch.from_numpy(NAIVE[name](first, second)), rtol=1e-4, atol=1e-6)


@given(pair=image_pairs(), sigma=st.floats(0.01, 10))
def test_gaussian_nll_agrees_with_its_formula_for_a_given_sigma(pair: tuple[Tensor, Tensor], sigma: float) -> None:
    oracle = torch.from_numpy(naive_nll(*pair, math.log(sigma)))
    assert_close(losses.gaussian_nll(*pair, sigma=sigma).double(), oracle, rtol=1e-4, atol=1e-4)


@given(pair=image_pairs(dtype=torch.float64), scale=st.floats(1e3, 1e5))
def test_calibrated_gaussian_nll_is_the_log_rmse_where_the_clip_is_far(
    pair: tuple[Tensor, Tensor], scale: float
) -> None:
    images = pair[0] * scale
    reconstruction = images + scale * (0.1 + pair[1])
    size = images[0].numel()
    log_rmse = 0.5 * (reconstruction - images).square().mean().log()
    expected = size * (log_rmse + 0.5 * math.log(2 * math.pi) + 0.5)
    assert_close(losses.gaussian_nll(reconstruction, images).mean(), expected, rtol=1e-8, atol=1e-6)


@given(pair=image_pairs(), sigma=st.floats(1e-3, 10))
def test_no_sigma_beats_the_calibrated_one_where_the_clip_is_far(pair: tuple[Tensor, Tensor], sigma: float) -> None:
    images, reconstruction = 1e3 * pair[0].double(), 1e3 * (pair[1].double() + 0.5)
    calibrated = losses.gaussian_nll(reconstruction, images).mean()
    assert calibrated <= losses.gaussian_nll(reconstruction, images, sigma=1e3 * sigma).mean() + 1e-6


@pytest.mark.parametrize("name", NAIVE)
@given(seed=SEEDS)
def test_gradient_agrees_with_finite_differences(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, 2, 3, dtype=torch.float64, generator=generator)
    reconstruction = (images + 0.1 + images.roll(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: losses.RECONSTRUCTIONS[name].loss(values, images), reconstruction)


@pytest.mark.parametrize("name", NAIVE)
def test_gradient_at_zero_error_is_zero(name: str) -> None:
    images = torch.rand(2, 3, 4, 4)
    reconstruction = images.clone().requires_grad_()
    losses.RECONSTRUCTIONS[name].loss(reconstruction, images).sum().backward()
    assert reconstruction.grad is not None
    assert torch.equal(reconstruction.grad, torch.zeros_like(images))


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 4, 1), (2, 3, 4)])
def test_shapes_that_would_broadcast_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="one shape"):
        losses.RECONSTRUCTIONS[name].loss(torch.zeros(shape), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_sigma_that_is_not_above_zero_is_refused(sigma: float) -> None:
    with pytest.raises(InvalidOptionError, match="sigma must be above 0"):
        losses.gaussian_nll(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), sigma=sigma)


@given(q=POSTERIORS)
def test_kl_is_the_posterior_s(q: DiagonalGaussian) -> None:
    assert torch.equal(losses.kl(q), q.kl())


@given(q=POSTERIORS, free_bits=st.floats(0, 5), beta=st.floats(0, 10), seed=SEEDS)
def test_elbo_agrees_with_a_naive_loop(q: DiagonalGaussian, free_bits: float, beta: float, seed: int) -> None:
    output, images = output_and_images(q, seed)
    terms = losses.elbo(output, images, reconstruction="mse", beta=beta, free_bits=free_bits)
    mean, logvar = q.mean.double().tolist(), q.logvar.double().tolist()
    penalty = plain = 0.0
    for j in range(len(mean[0])):
        parts = [0.5 * (m[j] ** 2 + math.exp(v[j]) - 1 - v[j]) for m, v in zip(mean, logvar, strict=True)]
        average = sum(parts) / len(parts)
        plain += average
        penalty += max(free_bits, average)
    error = float(np.mean(naive_mse(output.reconstruction, images)))
    assert terms.reconstruction.item() == pytest.approx(error, rel=1e-4)
    assert terms.kl.item() == pytest.approx(plain, rel=1e-4, abs=1e-5)
    assert terms.total.item() == pytest.approx(error + beta * penalty, rel=1e-4, abs=1e-4)


def test_free_bits_stop_the_gradient_of_dimensions_below_the_threshold() -> None:
    mean = torch.tensor([[0.1, 3.0], [0.2, 2.0]], requires_grad=True)
    output, images = output_and_images(DiagonalGaussian(mean, torch.zeros(2, 2)))
    losses.elbo(output, images, beta=1.0, free_bits=0.5).total.backward()
    assert mean.grad is not None
    assert_close(mean.grad, torch.tensor([[0.0, 1.5], [0.0, 1.0]]))


@pytest.mark.parametrize("name", NAIVE)
def test_beta_defaults_to_the_term_s_own(name: str) -> None:
    output, images = output_and_images(DiagonalGaussian(torch.ones(2, 3), torch.zeros(2, 3)))
    terms = losses.elbo(output, images, reconstruction=name)
    assert_close(terms.total, terms.reconstruction + losses.RECONSTRUCTIONS[name].beta * 1.5)


def test_a_function_stands_for_itself_with_the_beta_it_comes_with() -> None:
    def largest_error(first: Tensor, second: Tensor) -> Tensor:
        return (first - second).flatten(1).amax(dim=1)

    output, images = output_and_images(DiagonalGaussian(torch.ones(2, 3), torch.zeros(2, 3)))
    terms = losses.elbo(output, images, reconstruction=largest_error, beta=1.0)
    with pytest.raises(InvalidOptionError, match="needs a beta"):
        losses.elbo(output, images, reconstruction=largest_error)
    with pytest.raises(ShapeError, match=r"one value per item, \[2\], got \[\]"):
        losses.elbo(output, images, reconstruction=lambda first, second: (first - second).mean(), beta=1.0)
    assert_close(terms.reconstruction, (output.reconstruction - images).flatten(1).amax(dim=1).mean())
    assert_close(terms.total, terms.reconstruction + 1.5)


@given(q=POSTERIORS, beta=st.floats(0, 10))
def test_beta_as_a_tensor_equals_beta_as_a_number(q: DiagonalGaussian, beta: float) -> None:
    output, images = output_and_images(q)
    number, tensor = (losses.elbo(output, images, beta=value).total for value in (beta, torch.tensor(beta)))
    assert_close(number, tensor)


def test_map_latents_are_summed_over_all_their_axes() -> None:
    q = DiagonalGaussian(torch.ones(2, 3, 4, 5), torch.zeros(2, 3, 4, 5))
    output, images = output_and_images(q)
    assert losses.elbo(output, images).kl.item() == pytest.approx(0.5 * 3 * 4 * 5)


def test_an_unknown_term_suggests_the_nearest() -> None:
    output, images = output_and_images(DiagonalGaussian(torch.ones(2, 3), torch.zeros(2, 3)))
    with pytest.raises(UnknownNameError, match="Did you mean 'rmse'"):
        losses.elbo(output, images, reconstruction="rsme")


def test_negative_free_bits_are_refused() -> None:
    output, images = output_and_images(DiagonalGaussian(torch.ones(2, 3), torch.zeros(2, 3)))
    with pytest.raises(InvalidOptionError, match="free_bits"):
        losses.elbo(output, images, free_bits=-0.1)


def test_the_table_of_terms_is_read_only() -> None:
    table: Any = losses.RECONSTRUCTIONS
    with pytest.raises(TypeError):
        table["other"] = losses.RECONSTRUCTIONS["mse"]


@given(pair=image_pairs(), epsilon=st.sampled_from([1e-3, 0.1]))
def test_charbonnier_agrees_with_its_formula_and_lies_just_above_l1(
    pair: tuple[Tensor, Tensor], epsilon: float
) -> None:
    reconstruction, images = pair
    values = losses.charbonnier(reconstruction, images, epsilon=epsilon)
    errors = (reconstruction.double() - images.double()).flatten(1)
    assert_close(values.double(), (errors.square() + epsilon**2).sqrt().mean(dim=1), rtol=1e-5, atol=1e-7)
    absolute = losses.l1(reconstruction, images)
    assert (absolute - 1e-6 <= values).all()
    assert (values <= absolute + epsilon + 1e-6).all()


@given(pair=image_pairs())
def test_focal_frequency_without_focus_is_the_squared_error(pair: tuple[Tensor, Tensor]) -> None:
    assert_close(losses.focal_frequency(*pair, alpha=0), losses.mse(*pair), rtol=1e-4, atol=1e-7)


@given(pair=image_pairs(), alpha=st.sampled_from([0.5, 1.0, 2.0]))
def test_focal_frequency_agrees_with_its_formula(pair: tuple[Tensor, Tensor], alpha: float) -> None:
    reconstruction, images = pair
    difference = np.fft.fft2((reconstruction.double() - images.double()).numpy(), norm="ortho")
    weight = np.abs(difference) ** alpha
    weight = weight / np.maximum(weight.max(axis=(-2, -1), keepdims=True), 1e-300)
    expected = (weight * np.abs(difference) ** 2).reshape(len(images), -1).mean(axis=1)
    assert_close(losses.focal_frequency(*pair, alpha=alpha).double(), torch.tensor(expected), rtol=1e-3, atol=1e-7)


def test_similarity_has_no_gradient_at_equal_images_and_leads_there() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    start = (images + 0.1).clamp(0, 1).requires_grad_()
    (1 - losses.structural_similarity(start, images)).sum().backward()
    assert start.grad is not None
    closer = (start - 0.5 * start.grad).detach()
    assert (losses.structural_similarity(closer, images) > losses.structural_similarity(start, images)).all()
    same = images.clone().requires_grad_()
    losses.structural_similarity(same, images).sum().backward()
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda pair: losses.charbonnier(*pair, epsilon=0), "epsilon"),
        (lambda pair: losses.focal_frequency(*pair, alpha=-1), "alpha"),
    ],
)
def test_options_of_losses_are_checked(call: Any, word: str) -> None:
    with pytest.raises(InvalidOptionError, match=word):
        call((torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)))
