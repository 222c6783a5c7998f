import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import BATCH_SIZES, FLOAT_DTYPES, LATENT_SHAPES, SEEDS, gaussians
from transfervae import DiagonalGaussian, PointPosterior, Posterior


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def points(draw: st.DrawFn) -> Tensor:
    shape = (draw(BATCH_SIZES), *draw(LATENT_SHAPES))
    return torch.randn(shape, generator=seeded(draw(SEEDS)), dtype=torch.float64)


@given(mean=points(), tau=st.sampled_from([0.0, 0.8]))
def test_a_point_is_a_posterior_without_kl(mean: Tensor, tau: float) -> None:
    posterior = PointPosterior(mean, tau)
    assert isinstance(posterior, Posterior)
    assert torch.equal(posterior.mode(), mean)
    assert torch.equal(posterior.kl(), torch.zeros(len(mean), dtype=torch.float64))
    assert torch.equal(posterior.kl_per_dimension(), torch.zeros_like(mean))
    assert torch.equal(posterior.variance, torch.zeros_like(mean))


@given(q=gaussians())
def test_a_gaussian_is_a_posterior(q: DiagonalGaussian) -> None:
    assert isinstance(q, Posterior)
    assert_close(q.variance, q.std.square(), rtol=1e-9, atol=0)


@given(dtype=FLOAT_DTYPES)
def test_points_are_held_in_at_least_float32(dtype: torch.dtype) -> None:
    expected = torch.promote_types(dtype, torch.float32)
    posterior = PointPosterior(torch.zeros(2, 3, dtype=dtype), 0.5)
    assert posterior.mean.dtype == posterior.sample().dtype == posterior.kl().dtype == expected


@given(mean=points(), seed=SEEDS)
def test_without_noise_a_draw_is_the_point_and_uses_no_randomness(mean: Tensor, seed: int) -> None:
    generator = seeded(seed)
    before = generator.get_state()
    assert torch.equal(PointPosterior(mean).sample(generator=generator), mean)
    assert torch.equal(generator.get_state(), before)


@given(mean=points(), seed=SEEDS, tau=st.floats(0.01, 3))
def test_a_draw_follows_its_formula_with_one_level_an_item(mean: Tensor, seed: int, tau: float) -> None:
    generator = seeded(seed)
    level = torch.rand(len(mean), generator=generator, dtype=mean.dtype)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    expected = mean + tau * level.view(-1, *[1] * (mean.ndim - 1)) * noise
    assert_close(PointPosterior(mean, tau).sample(generator=seeded(seed)), expected)


def test_draws_have_the_moments_of_the_formula() -> None:
    draws = PointPosterior(torch.full((20_000, 4), 3.0), 0.9).sample(generator=seeded(0))
    assert draws.mean().item() == pytest.approx(3.0, abs=0.01)
    assert draws.var().item() == pytest.approx(0.9**2 / 3, rel=0.03)


def test_gradients_flow_to_the_points() -> None:
    mean = torch.zeros(2, 3, requires_grad=True)
    posterior = PointPosterior(mean, 0.5)
    (posterior.sample().sum() + posterior.kl().sum()).backward()
    assert mean.grad is not None
    assert torch.equal(mean.grad, torch.ones(2, 3))


def scaling_for(mean: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    shape = (mean.shape[1], *[1] * (mean.ndim - 2))
    offset, scale = torch.randn(2, *shape, generator=seeded(seed), dtype=mean.dtype)
    return offset, scale.exp()


@given(q=gaussians(), seed=SEEDS)
def test_a_normalised_gaussian_is_the_distribution_of_normalised_draws(q: DiagonalGaussian, seed: int) -> None:
    mean, std = scaling_for(q.mean, seed)
    expected = (q.sample(generator=seeded(seed)) - mean) / std
    assert_close(q.normalised(mean, std).sample(generator=seeded(seed)), expected, rtol=1e-9, atol=1e-9)
    assert_close(q.normalised(mean, std).kl_per_dimension(), q.kl_per_dimension(_undone(q, mean, std)))


@given(mean=points(), seed=SEEDS)
def test_no_gradient_flows_through_a_detached_posterior_that_draws_the_same(mean: Tensor, seed: int) -> None:
    leaf = mean.clone().requires_grad_()
    for posterior in (DiagonalGaussian(leaf, leaf), PointPosterior(leaf), PointPosterior(leaf, leaf.abs())):
        detached = posterior.detach()
        draw = detached.sample(generator=seeded(seed))
        assert torch.equal(draw, posterior.sample(generator=seeded(seed)))
        assert not draw.requires_grad
        assert not any(value.requires_grad for value in detached.moments().values())


def _undone(q: DiagonalGaussian, mean: Tensor, std: Tensor) -> DiagonalGaussian:
    """The standard normal of the scaled space, as it lies in the unscaled one: KL does not depend on the scale."""
    return DiagonalGaussian(mean.expand_as(q.mean), 2 * std.log().expand_as(q.mean))


@given(mean=points(), seed=SEEDS, tau=st.sampled_from([0.0, 0.8]))
def test_a_normalised_point_gets_its_noise_before_the_scaling(mean: Tensor, seed: int, tau: float) -> None:
    offset, std = scaling_for(mean, seed)
    posterior = PointPosterior(mean, tau)
    normalised = posterior.normalised(offset, std)
    assert_close(normalised.mode(), (mean - offset) / std)
    expected = (posterior.sample(generator=seeded(seed)) - offset) / std
    assert_close(normalised.sample(generator=seeded(seed)), expected)
    twice = normalised.normalised(offset, std)
    assert_close(twice.sample(generator=seeded(seed)), (expected - offset) / std)
