from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import transfervae as tv
from tests.runs import Small
from transfervae.errors import DivergedError
from transfervae.objectives import Term
from transfervae.objectives.term import ModelOutput
from transfervae.training._guard import DECAY, StepGuard


def test_steps_ten_times_the_running_loss_are_refused_and_leave_it_alone() -> None:
    guard = StepGuard(["model", "judge"])
    assert guard.allows("model", torch.tensor(2.0))
    assert not guard.allows("model", torch.tensor(20.1))
    assert not guard.allows("model", torch.tensor(-20.1))
    assert guard.running[0] == 2
    assert guard.allows("model", torch.tensor(4.0))
    assert guard.running[0].item() == pytest.approx(DECAY * 2 + (1 - DECAY) * 4)
    assert guard.running[1].isnan()
    assert guard.allows("judge", torch.tensor(1000.0))
    assert guard.skipped == {"model": 2, "judge": 0}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_are_not_finite_are_refused_from_the_first_step_on(wrong: float) -> None:
    guard = StepGuard(["model"])
    assert not guard.allows("model", torch.tensor(wrong))
    assert guard.allows("model", torch.tensor(1.0))
    assert not guard.allows("model", torch.tensor(wrong))
    assert guard.running[0] == 1


class Explodes(Term):
    """L1, which becomes a wrong number at some steps of training."""

    name = "own"

    def __init__(self, steps: set[int], wrong: float = float("nan")) -> None:
        super().__init__()
        self.steps = steps
        self.wrong = wrong
        self.done = 0

    def forward(self, output: ModelOutput, images: Tensor) -> Tensor:
        error = (output.reconstruction - images).abs().flatten(1).mean(dim=1)
        if not output.reconstruction.requires_grad:
            return error
        self.done += 1
        return error * (self.wrong if self.done in self.steps else 1.0)


class ExplodesAndLearns(Explodes):
    """The same with a parameter that learns by itself."""

    def __init__(self, steps: set[int], wrong: float = float("nan")) -> None:
        super().__init__(steps, wrong)
        self.scale = nn.Parameter(torch.zeros(()))

    def own_loss(self, output: ModelOutput, images: Tensor) -> Tensor:  # noqa: ARG002 - every term has them
        return (self.scale - 1).square()

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.scale], lr=0.1)


@pytest.mark.parametrize("wrong", [float("nan"), 1e6])
def test_wrong_steps_are_skipped_and_counted(wrong: float, tmp_path: Path) -> None:
    term = ExplodesAndLearns({2, 8}, wrong)
    result = Small(cache="off").train(tmp_path, objective=tv.Objective(term))
    assert [row["train/skipped"] for row in result.rows] == [1, 1]
    assert all(0 < row["train/loss"] < 1 for row in result.rows)
    assert all(parameter.isfinite().all() for parameter in result.vae.parameters())


def test_a_run_that_skips_most_steps_of_an_epoch_ends_and_names_the_term(tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"3 of 5 steps of model in epoch 1 .* the term own was the first, at step 2;"
    ):
        Small().train(tmp_path, objective=tv.Objective(ExplodesAndLearns({2, 3, 4})))


def test_a_term_that_is_not_finite_is_named_with_its_step(tmp_path: Path) -> None:
    objective = tv.Objective("rmse", Explodes({9}))
    with pytest.raises(
        DivergedError, match=r"train/term/own is nan in epoch 2; the term own was the first, at step 9;"
    ):
        Small().train(tmp_path, objective=objective)
