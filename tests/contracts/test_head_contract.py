import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from tests.strategies import BATCH_SIZES, FEATURE_SHAPES, LATENT_DIMS, SEEDS, features
from transfervae.errors import InvalidOptionError, ShapeError
from transfervae.heads import HEADS
from transfervae.posteriors import DiagonalGaussian, Posterior

WITHOUT_PARAMETERS = {"deterministic"}
OF_ONE_SIZE = {"gaussian"}
GAUSSIAN = sorted(HEADS.keys() - {"deterministic"})

each_head = pytest.mark.parametrize("kind", HEADS)
each_gaussian_head = pytest.mark.parametrize("kind", GAUSSIAN)
each_free_head = pytest.mark.parametrize("kind", sorted(HEADS.keys() - OF_ONE_SIZE))


def make_head(kind: str, values: Tensor, latent_dim: int = 5) -> Any:
    options = {"latent_dim": latent_dim} if kind in GAUSSIAN else {}
    return HEADS[kind](tuple(values.shape[1:]), **options)


def moments(posterior: Posterior) -> list[Tensor]:
    return [posterior.mean, posterior.variance]


@each_head
@given(values=features(), latent_dim=LATENT_DIMS)
def test_posterior_is_of_the_declared_latent_shape_and_finite(kind: str, values: Tensor, latent_dim: int) -> None:
    head = make_head(kind, values, latent_dim)
    posterior = head(values)
    assert isinstance(posterior, Posterior)
    shape = (len(values), *head.latent_shape_for(values.shape[1:]))
    for tensor in (*moments(posterior), posterior.mode(), posterior.sample(), posterior.kl_per_dimension()):
        assert tensor.shape == shape
        assert tensor.isfinite().all()
    assert posterior.kl().shape == (len(values),)


@each_head
@given(values=features(), latent_dim=LATENT_DIMS)
def test_kl_at_the_first_step_is_below_50_nats(kind: str, values: Tensor, latent_dim: int) -> None:
    assert 0 <= make_head(kind, values, latent_dim)(values).kl().mean() < 50


@each_head
@given(values=features(), latent_dim=LATENT_DIMS)
def test_every_parameter_receives_a_finite_gradient(kind: str, values: Tensor, latent_dim: int) -> None:
    head = make_head(kind, values, latent_dim)
    values.requires_grad_()
    posterior = head(values)
    (posterior.kl() + posterior.sample().flatten(1).square().mean(dim=1)).sum().backward()
    parameters = list(head.parameters())
    assert bool(parameters) == (kind not in WITHOUT_PARAMETERS)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
    assert values.grad is not None
    assert values.grad.isfinite().all()


@each_head
@given(shape=st.tuples(st.integers(2, 8), st.integers(2, 5), st.integers(2, 5)), seed=SEEDS)
def test_no_parameter_is_without_effect(kind: str, shape: tuple[int, int, int], seed: int) -> None:
    values = torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    head = make_head(kind, values)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    posterior = head(values)
    if kind not in WITHOUT_PARAMETERS:
        (torch.randn_like(posterior.mean) * (posterior.mean + posterior.variance)).sum().backward()
    assert [name for name, value in head.named_parameters() if value.grad is None or not value.grad.any()] == []


@each_head
@given(shape=FEATURE_SHAPES, latent_dim=LATENT_DIMS)
def test_spec_builds_the_same_head_again(kind: str, shape: tuple[int, int, int], latent_dim: int) -> None:
    values = torch.randn(2, *shape)
    head = make_head(kind, values, latent_dim)
    spec = HEADS.spec_of(head)
    assert spec is not None
    assert spec.name == kind
    again: Any = HEADS.build(json.loads(json.dumps(spec.to_dict())), shape)
    again.load_state_dict(head.state_dict())
    assert HEADS.spec_of(again) == spec
    assert all(torch.equal(*pair) for pair in zip(moments(again(values)), moments(head(values)), strict=True))


@each_head
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_moments_are_at_least_float32(kind: str, dtype: torch.dtype) -> None:
    values = torch.randn(2, 4, 3, 3)
    for head in (make_head(kind, values), make_head(kind, values).to(torch.bfloat16)):
        posterior = head(values.to(dtype))
        expected = torch.promote_types(dtype, torch.float32)
        assert posterior.mean.dtype == posterior.variance.dtype == posterior.kl().dtype == expected


@each_head
@given(values=features(), latent_dim=LATENT_DIMS)
def test_autocast_changes_nothing(kind: str, values: Tensor, latent_dim: int) -> None:
    head = make_head(kind, values, latent_dim)
    for name, parameter in head.named_parameters():
        if name.startswith("logvar"):
            nn.init.normal_(parameter)
    plain = head(values)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head(values)
    assert all(torch.equal(*pair) for pair in zip(moments(cast), moments(plain), strict=True))


@each_head
@given(shape=FEATURE_SHAPES, batch=BATCH_SIZES)
def test_items_of_a_batch_do_not_mix(kind: str, shape: tuple[int, int, int], batch: int) -> None:
    values = torch.randn(batch, *shape)
    head = make_head(kind, values)
    alone = torch.cat([head(values[i : i + 1]).mean for i in range(batch)])
    assert_close(head(values).mean, alone, rtol=1e-4, atol=1e-5)


@each_free_head
@given(first=FEATURE_SHAPES, grid=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_a_head_that_is_free_of_the_grid_takes_every_one(
    kind: str, first: tuple[int, int, int], grid: tuple[int, int]
) -> None:
    head = make_head(kind, torch.zeros(1, *first))
    shape = (first[0], *grid)
    assert head(torch.randn(2, *shape)).mean.shape == (2, *head.latent_shape_for(shape))


@pytest.mark.usefixtures("without_shape_checks")
@each_gaussian_head
def test_features_that_do_not_fit_are_refused(kind: str) -> None:
    head = make_head(kind, torch.zeros(1, 4, 2, 2))
    with pytest.raises(ShapeError, match="4"):
        head(torch.zeros(1, 5, 2, 2))
    for shape in ((5, 2, 2), (4, 2), (4, 2, 2, 2)):
        with pytest.raises(ShapeError):
            head.latent_shape_for(shape)


@each_head
@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 2, 2), (0, 2, 2), (), (4, -1, 2)])
def test_a_feature_shape_that_cannot_be_is_refused(kind: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="feature_shape"):
        HEADS[kind](shape)


@each_gaussian_head
def test_a_latent_dimension_that_cannot_be_is_refused(kind: str) -> None:
    with pytest.raises(InvalidOptionError, match="latent_dim"):
        HEADS[kind]((4, 2, 2), latent_dim=0)


@each_gaussian_head
def test_gaussian_heads_start_at_the_priors_variance(kind: str) -> None:
    values = torch.randn(2, 4, 3, 3)
    posterior = make_head(kind, values)(values)
    assert isinstance(posterior, DiagonalGaussian)
    assert (posterior.logvar == 0).all()
