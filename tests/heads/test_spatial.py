import math

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import SEEDS, features
from transfervae import SpatialGaussianHead
from transfervae.errors import InvalidOptionError


@given(values=features())
def test_posterior_agrees_with_its_formula_in_float64_also_under_autocast(values: Tensor) -> None:
    head = SpatialGaussianHead((values.shape[1], 1, 1), latent_dim=3)
    torch.nn.init.normal_(head.logvar.weight, std=0.05)
    wide = values.double()
    spread = (wide.var(dim=(1, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    normal = (wide - wide.mean(dim=(1, 2, 3), keepdim=True)) / spread
    mean, logvar = (
        torch.einsum("oc,bchw->bohw", layer.weight.double()[..., 0, 0], normal) for layer in (head.mean, head.logvar)
    )
    with torch.autocast("cpu", torch.bfloat16):
        posterior = head(values)
    tolerance = 1e-4 + 1e-5 * (wide.abs().amax() / spread.amin()).item()
    assert_close(posterior.mean.double(), mean, rtol=1e-4, atol=tolerance)
    assert_close(posterior.logvar.double(), 20 / math.pi * torch.atan(math.pi / 20 * logvar), rtol=1e-4, atol=tolerance)


def test_expected_kl_at_the_first_step_is_the_documented_one() -> None:
    torch.manual_seed(0)
    kl = (
        SpatialGaussianHead((64, 1, 1), latent_dim=64)(torch.randn(16, 64, 6, 5) * 100 + 30)
        .kl_per_dimension()
        .mean()
        .item()
    )
    assert kl == pytest.approx(0.01, rel=0.2)


@given(seed=SEEDS)
def test_a_latent_sees_no_other_cell_but_through_the_normalisation(seed: int) -> None:
    values = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    head = SpatialGaussianHead((4, 1, 1), latent_dim=2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    mixed = values.flatten(2)[..., order].view_as(values)
    expected = head(values).mean.flatten(2)[..., order]
    assert_close(head(mixed).mean.flatten(2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("latent_dim", [0, -1])
def test_channels_below_one_are_refused(latent_dim: int) -> None:
    with pytest.raises(InvalidOptionError, match="latent_dim"):
        SpatialGaussianHead((4, 1, 1), latent_dim=latent_dim)
