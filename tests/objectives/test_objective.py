from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from tests.strategies import gaussians, image_pairs
from transfervae import DiagonalGaussian, Spec, VAEOutput, losses
from transfervae.errors import InvalidOptionError, ShapeError, UnknownNameError, UnknownOptionError
from transfervae.objectives import TERMS, Objective, Term, WeightedTerm
from transfervae.schedules import cyclic, linear_warmup

RECONSTRUCTIONS = sorted(losses.RECONSTRUCTIONS)


def output_of(reconstruction: Tensor, posterior: DiagonalGaussian) -> VAEOutput:
    return VAEOutput(reconstruction, posterior, posterior.mean)


@given(pair=image_pairs(), name=st.sampled_from(RECONSTRUCTIONS), free_bits=st.sampled_from([0.0, 0.3]), data=st.data())
def test_the_default_objective_is_the_elbo_bit_for_bit(
    pair: tuple[Tensor, Tensor], name: str, free_bits: float, data: st.DataObject
) -> None:
    reconstruction, images = pair
    posterior = data.draw(gaussians(dtype=torch.float32, batches=st.just(len(images))))
    output = output_of(reconstruction, posterior)
    value = Objective(name, Spec("kl", free_bits=free_bits))(output, images)
    oracle = losses.elbo(output, images, reconstruction=name, free_bits=free_bits)
    assert torch.equal(value.total, oracle.total)
    assert torch.equal(value.raw[name], oracle.reconstruction)
    assert torch.equal(value.raw["kl"], oracle.kl)
    assert_close(sum(value.weighted.values()), value.total)


@given(epochs=st.integers(1, 5), steps=st.integers(1, 50), at=st.integers(0, 400), start=st.integers(0, 3))
def test_weights_follow_their_schedules_from_their_start(epochs: int, steps: int, at: int, start: int) -> None:
    common: dict[str, Any] = {"weight": 2.0, "schedule_epochs": epochs, "start_epoch": start}
    began = at - start * steps
    for schedule, oracle in (("linear", linear_warmup), ("cyclic", cyclic)):
        weight = Objective("rmse", Spec("kl", schedule=schedule, **common)).weights_at(at, steps)["kl"]
        assert weight == (0.0 if began < 0 else oracle(2.0, epochs * steps)(began))
    assert Objective("rmse", Spec("kl", **common)).weights_at(at, steps)["kl"] == (0.0 if began < 0 else 2.0)


@pytest.mark.parametrize("name", RECONSTRUCTIONS)
def test_the_kl_weighs_what_suits_the_reconstruction_term(name: str) -> None:
    assert Objective(name, "kl").final_weights() == {name: 1.0, "kl": losses.RECONSTRUCTIONS[name].beta}
    assert Objective(name, Spec("kl", weight=0.5)).final_weights()["kl"] == 0.5


class Mean(Term):
    """A term that wrongly averages over the batch."""

    def forward(self, output: Any, images: Tensor) -> Any:
        return (output.reconstruction - images).mean()


class Scaled(Term):
    """A term with a parameter."""

    name = "scaled"

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, output: Any, images: Tensor) -> Tensor:
        return self.scale * losses.l1(output.reconstruction, images)


class Own(Scaled):
    """A term with an optimiser."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def own_loss(self, output: Any, images: Tensor) -> Tensor:
        return self.forward(output, images).mean()


def test_a_term_that_averages_over_the_batch_is_refused() -> None:
    images = torch.rand(2, 3, 4, 4)
    output = output_of(images, DiagonalGaussian(torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(ShapeError, match=r"Mean must give one value per item, \[2\], got \[\]"):
        Objective(Mean())(output, images)


def test_parameters_go_to_the_models_optimiser_unless_a_term_has_its_own() -> None:
    assert len(list(Objective("rmse", Scaled()).trainable_parameters())) == 1
    own = Objective("rmse", Own())
    assert not list(own.trainable_parameters())
    assert own.terms_with_optimizer().keys() == {"scaled"}


def test_a_loss_of_ones_own_needs_a_weight_for_the_kl() -> None:
    with pytest.raises(InvalidOptionError, match="give one"):
        Objective(Scaled(), "kl")
    assert Objective(Scaled(), Spec("kl", weight=1e-3)).final_weights() == {"scaled": 1.0, "kl": 1e-3}


@pytest.mark.parametrize(
    ("terms", "error", "words"),
    [
        (("rsme",), UnknownNameError, "Did you mean 'rmse'"),
        ((Spec("kl", wieght=1.0),), UnknownOptionError, "Did you mean 'weight'"),
        ((Spec("rmse", schedule="liner"),), UnknownNameError, "Did you mean 'linear'"),
        ((Spec("rmse", weight=-1.0),), InvalidOptionError, "weight"),
        (("rmse", "rmse"), InvalidOptionError, "each name once"),
        ((), InvalidOptionError, "at least one term"),
        ((Spec("kl", weight=1.0, free_bits=-1.0),), InvalidOptionError, "free_bits"),
    ],
)
def test_objectives_that_cannot_be_are_refused(terms: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Objective(*terms)


def test_an_objective_is_described_and_read_again() -> None:
    objective = Objective("gaussian_nll", Spec("kl", weight=0.1, free_bits=0.2), WeightedTerm(Scaled(), weight=0.3))
    described = objective.to_dict()
    assert described["kl"] == {
        "weight": 0.1, "start_epoch": 0, "start_step": 0, "start_share": 0.0, "schedule": "constant",
        "schedule_epochs": 1, "free_bits": 0.2, "capacity": None
    }  # fmt: skip
    assert described["own:scaled"]["weight"] == 0.3
    del described["own:scaled"]
    assert Objective.parse(described).to_dict() == described
    assert Objective.parse("rmse, kl").final_weights() == Objective.parse(["rmse", "kl"]).final_weights()
    assert set(TERMS) >= {"rmse", "kl"}
