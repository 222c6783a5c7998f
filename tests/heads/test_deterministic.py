import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.strategies import features
from transfervae.errors import InvalidOptionError, UnknownOptionError
from transfervae.heads import HEADS, DeterministicHead


@given(values=features())
def test_latents_are_the_features(values: Tensor) -> None:
    posterior = DeterministicHead((1, 1, 1))(values)
    assert torch.equal(posterior.mode(), values)
    assert torch.equal(posterior.sample(), values)


def test_tau_is_the_posteriors_noise() -> None:
    values = torch.zeros(4, 3, 2, 2)
    posterior = DeterministicHead((1, 1, 1), tau=0.8)(values)
    assert posterior.tau == 0.8
    assert torch.equal(posterior.mode(), values)
    assert not torch.equal(posterior.sample(), values)


def test_it_has_no_latent_dim() -> None:
    with pytest.raises(UnknownOptionError, match="'latent_dim'"):
        HEADS.build({"name": "deterministic", "latent_dim": 16}, (4, 2, 2))


def test_there_is_nothing_to_train() -> None:
    assert DeterministicHead((1, 1, 1)).state_dict() == {}


@pytest.mark.parametrize("tau", [-0.1, float("nan"), float("inf")])
def test_a_tau_that_cannot_be_is_refused(tau: float) -> None:
    with pytest.raises(InvalidOptionError, match="tau"):
        DeterministicHead((1, 1, 1), tau=tau)
