import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import BATCH_SIZES, FEATURE_SHAPES, FLOAT_DTYPES, LATENT_DIMS, SEEDS, features
from transfervae import GaussianHead
from transfervae.errors import InvalidOptionError, ShapeError
from transfervae.heads._shared import LOGVAR_BOUND, bound_logvar

LARGE_SHAPES = st.tuples(st.integers(1, 64), st.integers(1, 8), st.integers(1, 8))


@given(values=features(), latent_dim=LATENT_DIMS, dtype=FLOAT_DTYPES)
def test_posterior_has_the_latent_shape_in_at_least_float32(
    values: Tensor, latent_dim: int, dtype: torch.dtype
) -> None:
    posterior = GaussianHead(values.shape[1:], latent_dim=latent_dim)(values.to(dtype).nan_to_num())
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert posterior.mean.shape == posterior.logvar.shape == (len(values), latent_dim)
    assert posterior.mean.dtype == posterior.logvar.dtype == expected
    assert posterior.kl().isfinite().all()


@given(values=features(), latent_dim=LATENT_DIMS)
def test_autocast_changes_nothing(values: Tensor, latent_dim: int) -> None:
    head = GaussianHead(values.shape[1:], latent_dim=latent_dim)
    torch.nn.init.normal_(head.logvar.weight)
    plain = head(values)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head(values)
    assert torch.equal(cast.mean, plain.mean)
    assert torch.equal(cast.logvar, plain.logvar)


@given(values=features(), latent_dim=LATENT_DIMS)
def test_posterior_agrees_with_its_formula_in_float64_also_under_autocast(values: Tensor, latent_dim: int) -> None:
    head = GaussianHead(values.shape[1:], latent_dim=latent_dim)
    torch.nn.init.normal_(head.logvar.weight, std=0.01)
    flat = values.double().flatten(1)
    spread = (flat.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normal = (flat - flat.mean(dim=1, keepdim=True)) / spread
    mean = normal @ head.mean.weight.double().T
    logvar = 20 / math.pi * torch.atan(math.pi / 20 * normal @ head.logvar.weight.double().T)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = head(values)
    tolerance = 1e-4 + 1e-5 * (flat.abs().amax() / spread.amin()).item()
    assert_close(posterior.mean.double(), mean, rtol=1e-4, atol=tolerance)
    assert_close(posterior.logvar.double(), logvar, rtol=1e-4, atol=tolerance)


def test_a_head_in_half_precision_computes_in_float32() -> None:
    head = GaussianHead((4, 2, 2), latent_dim=3).to(torch.bfloat16)
    posterior = head(torch.randn(2, 4, 2, 2, dtype=torch.bfloat16))
    assert posterior.mean.dtype == posterior.logvar.dtype == torch.float32


@given(values=features(shapes=LARGE_SHAPES), latent_dim=st.sampled_from([1, 2, 8, 64, 512]), seed=SEEDS)
def test_kl_at_the_first_step_is_below_50_nats(values: Tensor, latent_dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    kl = GaussianHead(values.shape[1:], latent_dim=latent_dim)(values).kl().mean()
    assert 0 <= kl < 50


@pytest.mark.parametrize("latent_dim", [64, 128, 512])
def test_expected_kl_at_the_first_step_is_the_documented_one(latent_dim: int) -> None:
    torch.manual_seed(0)
    kl = GaussianHead((64, 4, 4), latent_dim=latent_dim)(torch.randn(64, 64, 4, 4) * 100 + 30).kl().mean().item()
    assert kl == pytest.approx(min(latent_dim / 8, 10.0), rel=0.2)


@given(shape=FEATURE_SHAPES, seed=SEEDS, scale=st.floats(0.1, 1e4), offset=st.floats(-5, 5))
def test_scale_and_offset_of_the_features_do_not_matter(
    shape: tuple[int, int, int], seed: int, scale: float, offset: float
) -> None:
    values = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if math.prod(shape) == 1:
        values = torch.zeros_like(values)
    values = values + torch.linspace(-3, 3, math.prod(shape), dtype=torch.float64).view(shape)
    head = GaussianHead(shape, latent_dim=4)
    assert_close(head(scale * (values + offset)).mean, head(values).mean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_extreme_pre_activations_give_a_finite_loss_and_a_gradient_that_leads_back(sign: float) -> None:
    head = GaussianHead((4, 2, 2), latent_dim=3)
    with torch.no_grad():
        head.logvar.bias.fill_(sign * 1e4)
    posterior = head(torch.randn(2, 4, 2, 2))
    loss = posterior.kl().mean()
    assert loss.isfinite()
    loss.backward()
    assert head.logvar.bias.grad is not None
    assert head.logvar.bias.grad.isfinite().all()
    assert (head.logvar.bias.grad * sign > 0).all()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_gradient_steps_lead_back_from_beyond_the_bound(sign: float) -> None:
    value = torch.tensor([sign * 1e4], requires_grad=True)
    optimiser = torch.optim.Adam([value], lr=500.0)
    for _ in range(60):
        optimiser.zero_grad()
        logvar = bound_logvar(value)
        (0.5 * (logvar.exp() - 1 - logvar)).sum().backward()
        optimiser.step()
    assert value.abs().item() < 5e3


@given(value=st.floats(-1e6, 1e6))
def test_bound_follows_its_formula(value: float) -> None:
    oracle = 2 * LOGVAR_BOUND / math.pi * math.atan(math.pi * value / (2 * LOGVAR_BOUND))
    assert bound_logvar(torch.tensor(value, dtype=torch.float64)).item() == pytest.approx(oracle)
    assert abs(bound_logvar(torch.tensor(value)).item()) <= LOGVAR_BOUND


def test_bound_has_slope_one_at_zero() -> None:
    value = torch.zeros((), requires_grad=True)
    bound_logvar(value).backward()
    assert value.grad is not None
    assert value.grad.item() == pytest.approx(1.0)


@pytest.mark.parametrize("constant", [0.0, 1.0, -1e4])
def test_constant_features_give_a_finite_posterior_and_finite_gradients(constant: float) -> None:
    head = GaussianHead((4, 2, 2), latent_dim=3)
    values = torch.full((2, 4, 2, 2), constant, requires_grad=True)
    head(values).kl().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())


@given(shape=FEATURE_SHAPES, batch=BATCH_SIZES)
def test_items_of_a_batch_do_not_mix(shape: tuple[int, int, int], batch: int) -> None:
    head = GaussianHead(shape, latent_dim=4)
    values = torch.randn(batch, *shape)
    alone = torch.cat([head(values[i : i + 1]).mean for i in range(batch)])
    assert_close(head(values).mean, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 2, 3), (5, 2, 2), (2, 2, 4)])
def test_features_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"\[4, 2, 2\]"):
        GaussianHead((4, 2, 2), latent_dim=3)(torch.zeros(1, *shape))


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 2, 2), (0, 2, 2), (), (4, -1, 2)])
def test_a_feature_shape_that_cannot_be_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="feature_shape"):
        GaussianHead(shape)


@pytest.mark.parametrize("latent_dim", [0, -1])
def test_a_latent_dimension_below_one_is_refused(latent_dim: int) -> None:
    with pytest.raises(InvalidOptionError, match="latent_dim"):
        GaussianHead((4, 2, 2), latent_dim=latent_dim)


def test_a_step_of_adam_moves_the_means_alike_whatever_the_number_of_features() -> None:
    moved = []
    for side in (4, 16):
        torch.manual_seed(0)
        values = torch.randn(8, 128, side, side)
        head = GaussianHead((128, side, side), latent_dim=16)
        before = head(values).mean.detach()
        optimiser = torch.optim.Adam(head.parameters(), lr=1e-3)
        (head(values).mean * torch.randn(8, 16)).sum().backward()
        optimiser.step()
        moved.append((head(values).mean - before).square().mean().sqrt().item())
    assert 0.5 < moved[1] / moved[0] < 2
