import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from tests.strategies import BATCH_SIZES, FLOAT_DTYPES, LATENT_SHAPES, SEEDS, gaussians
from transfervae import DiagonalGaussian
from transfervae.errors import ShapeError


def as_normal(q: DiagonalGaussian) -> Normal:
    return Normal(q.mean, (0.5 * q.logvar).exp())


def per_item(values: Tensor) -> Tensor:
    return values.flatten(1).sum(dim=1)


@given(q=gaussians())
def test_kl_agrees_with_torch_distributions(q: DiagonalGaussian) -> None:
    standard = Normal(torch.zeros_like(q.mean), torch.ones_like(q.mean))
    assert_close(q.kl(), per_item(kl_divergence(as_normal(q), standard)), rtol=1e-9, atol=1e-9)


@given(shape=LATENT_SHAPES, batch=BATCH_SIZES, data=st.data())
def test_kl_to_another_gaussian_agrees_with_torch_distributions(
    shape: tuple[int, ...], batch: int, data: st.DataObject
) -> None:
    alike = gaussians(batches=st.just(batch), latent_shapes=st.just(shape))
    q, p = data.draw(alike), data.draw(alike)
    assert_close(q.kl(p), per_item(kl_divergence(as_normal(q), as_normal(p))), rtol=1e-9, atol=1e-9)


@given(q=gaussians())
def test_kl_per_dimension_sums_to_the_kl(q: DiagonalGaussian) -> None:
    assert q.kl_per_dimension().shape == q.mean.shape
    assert_close(per_item(q.kl_per_dimension()), q.kl())


@given(q=gaussians(dtype=torch.float32))
def test_kl_is_never_negative(q: DiagonalGaussian) -> None:
    assert (q.kl() >= 0).all()


@given(q=gaussians(dtype=torch.float32))
def test_kl_to_itself_is_zero(q: DiagonalGaussian) -> None:
    assert_close(q.kl(q), torch.zeros(len(q.mean)))


def test_kl_of_the_standard_normal_is_zero() -> None:
    assert DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3)).kl().tolist() == [0.0, 0.0]


def test_kl_keeps_its_digits_near_zero_in_float32() -> None:
    logvar = torch.full((1, 1), 1e-3)
    exact = 0.5 * (torch.expm1(logvar.double()) - logvar.double())
    assert_close(DiagonalGaussian(torch.zeros(1, 1), logvar).kl().double(), exact.flatten(), rtol=1e-3, atol=0)


@given(q=gaussians(), seed=SEEDS)
def test_log_prob_agrees_with_torch_distributions(q: DiagonalGaussian, seed: int) -> None:
    latent = q.sample(generator=torch.Generator().manual_seed(seed)) + 0.5
    assert_close(q.log_prob(latent), per_item(as_normal(q).log_prob(latent)), rtol=1e-9, atol=1e-9)


@given(q=gaussians())
def test_entropy_agrees_with_torch_distributions(q: DiagonalGaussian) -> None:
    assert_close(q.entropy(), per_item(as_normal(q).entropy()), rtol=1e-9, atol=1e-9)


@given(q=gaussians())
def test_std_is_the_root_of_the_variance(q: DiagonalGaussian) -> None:
    assert_close(q.std.square().log(), q.logvar, rtol=1e-9, atol=1e-9)


@given(q=gaussians())
def test_mode_is_the_mean(q: DiagonalGaussian) -> None:
    assert q.mode() is q.mean


@given(q=gaussians(), seed=SEEDS)
def test_sample_is_reproduced_by_its_generator(q: DiagonalGaussian, seed: int) -> None:
    first, second = (q.sample(generator=torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, second)


@given(seed=SEEDS)
def test_sample_with_a_generator_leaves_the_global_one_alone(seed: int) -> None:
    before = torch.get_rng_state()
    DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3)).sample(generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_have_the_mean_and_the_standard_deviation() -> None:
    count = 20_000
    mean, logvar = torch.tensor([-2.0, 0.0, 5.0]), torch.tensor([-4.0, 0.0, 2.0])
    draws = DiagonalGaussian(mean.expand(count, 3), logvar.expand(count, 3)).sample(
        generator=torch.Generator().manual_seed(0)
    )
    std = (0.5 * logvar).exp()
    assert ((draws.mean(dim=0) - mean).abs() < 5 * std / count**0.5).all()
    assert_close(draws.std(dim=0), std, rtol=0.05, atol=0)


@given(seed=SEEDS)
def test_a_sample_sends_the_reparameterisation_gradient_to_both_moments(seed: int) -> None:
    mean, logvar = torch.zeros(2, 3, requires_grad=True), torch.full((2, 3), 0.7, requires_grad=True)
    draw = DiagonalGaussian(mean, logvar).sample(generator=torch.Generator().manual_seed(seed))
    draw.sum().backward()
    assert mean.grad is not None
    assert logvar.grad is not None
    assert_close(mean.grad, torch.ones(2, 3))
    assert_close(logvar.grad, 0.5 * draw.detach())


@given(dtype=FLOAT_DTYPES)
def test_moments_are_held_in_at_least_float32(dtype: torch.dtype) -> None:
    q = DiagonalGaussian(torch.zeros(1, 2, dtype=dtype), torch.full((1, 2), 12.0, dtype=dtype))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert (q.mean.dtype, q.logvar.dtype, q.kl().dtype) == (expected, expected, expected)
    assert q.kl().isfinite().all()


@pytest.mark.usefixtures("without_shape_checks")
def test_moments_of_two_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 3\] and \[2, 4\]"):
        DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 4))
