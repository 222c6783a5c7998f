import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.testing import assert_close

from tests.strategies import LATENT_SHAPES, SEEDS
from transfervae.errors import InvalidOptionError, ShapeError
from transfervae.priors import PRIORS, Prior

each_prior = pytest.mark.parametrize("name", PRIORS)
TEMPERATURES = st.sampled_from([0.5, 1.0, 1.3])


@each_prior
@given(shape=LATENT_SHAPES, temperature=TEMPERATURES, seed=SEEDS)
def test_densities_agree_with_torch_distributions(
    name: str, shape: tuple[int, ...], temperature: float, seed: int
) -> None:
    prior = PRIORS.build({"name": name, "temperature": temperature}, shape)
    assert isinstance(prior, Prior)
    latents = prior.sample(3, generator=torch.Generator().manual_seed(seed))
    assert latents.shape == (3, *shape)
    oracle = Normal(0.0, temperature).log_prob(latents.double()).flatten(1).sum(dim=1)
    assert_close(prior.log_prob(latents).double(), oracle, rtol=1e-4, atol=1e-4)


@each_prior
def test_draws_have_the_temperature_as_their_deviation(name: str) -> None:
    draws = PRIORS.build({"name": name, "temperature": 0.5}, (50,)).sample(2000)
    assert draws.std().item() == pytest.approx(0.5, rel=0.02)


@each_prior
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_cannot_be_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(InvalidOptionError, match="temperature"):
        PRIORS.build({"name": name, "temperature": temperature}, (4,))


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[4\]"):
        PRIORS.build("standard_normal", (4,)).log_prob(torch.zeros(2, 5))


@each_prior
def test_checkpoints_hold_nothing_of_it(name: str) -> None:
    prior = PRIORS.build(name, (4,))
    prior.fit(torch.zeros(3, 4))
    assert not prior.state_dict()
