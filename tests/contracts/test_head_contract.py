from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.strategies import LATENT_DIMS, features
from transfervae.heads import HEADS

each_head = pytest.mark.parametrize("kind", HEADS)


def make_head(kind: str, values: Tensor, latent_dim: int) -> Any:
    return HEADS[kind](tuple(values.shape[1:]), latent_dim=latent_dim)


@each_head
@given(values=features(), latent_dim=LATENT_DIMS)
def test_posterior_is_of_the_declared_latent_shape_and_finite(kind: str, values: Tensor, latent_dim: int) -> None:
    head = make_head(kind, values, latent_dim)
    posterior = head(values)
    assert posterior.mean.shape == (len(values), *head.latent_shape)
    assert posterior.mean.isfinite().all()
    assert posterior.logvar.isfinite().all()


@each_head
@given(values=features(), latent_dim=LATENT_DIMS)
def test_kl_at_the_first_step_is_below_50_nats(kind: str, values: Tensor, latent_dim: int) -> None:
    assert make_head(kind, values, latent_dim)(values).kl().mean() < 50


@each_head
@given(values=features(), latent_dim=LATENT_DIMS)
def test_every_parameter_receives_a_finite_gradient(kind: str, values: Tensor, latent_dim: int) -> None:
    head = make_head(kind, values, latent_dim)
    posterior = head(values)
    (posterior.kl() + posterior.sample().square().sum()).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())


@each_head
def test_config_builds_the_same_head_again(kind: str) -> None:
    values = torch.randn(2, 4, 3, 3)
    head = make_head(kind, values, 5)
    options: dict[str, Any] = dict(head.config)
    again: Any = HEADS[options.pop("kind")](**options)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(values).mean, head(values).mean)
    assert torch.equal(again(values).logvar, head(values).logvar)


@each_head
def test_moments_are_float32_under_autocast(kind: str) -> None:
    values = torch.randn(2, 4, 3, 3)
    head = make_head(kind, values, 5)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = head(values.bfloat16())
    assert posterior.mean.dtype == posterior.logvar.dtype == torch.float32
