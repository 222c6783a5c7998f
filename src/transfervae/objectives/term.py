"""One summand of an objective, and the weight that it counts with."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from transfervae.backbones import FrozenBackbone
from transfervae.errors import InvalidOptionError, ShapeError, UnknownNameError
from transfervae.posteriors import Posterior
from transfervae.schedules import Schedule, constant, cyclic, linear_warmup
from transfervae.shapes import (
    Features,
    Images,
    Latents,
    PerItem,
    Scalar,
    check_nonnegative,
    check_positive,
    check_share,
)


@runtime_checkable
class ModelOutput(Protocol):
    """The model's output, as terms read it; `VAEOutput` is one."""

    @property
    def reconstruction(self) -> Images:
        """Images, `[b, 3, h, w]` in [0, 1]."""

    @property
    def posterior(self) -> Posterior:
        """The latents' posterior."""

    @property
    def latent(self) -> Latents:
        """The latents that were decoded."""


class EncodedOutput(NamedTuple):
    """The model's output with what the backbone gave for the images, where that is at hand.

    Attributes:
        reconstruction: Images `[b, 3, h, w]` in [0, 1].
        posterior: The latents' posterior.
        latent: The latents that were decoded.
        features: `[b, c, h', w']`, as the encoder's backbone gives them for the original images.
    """

    reconstruction: Images
    posterior: Posterior
    latent: Latents
    features: Features


class TermValue(NamedTuple):
    """The value of a term for a batch.

    Attributes:
        raw: The quantity itself, mean over the batch: what is reported.
        minimised: What counts in the objective, before the weight; mostly the same.
    """

    raw: Scalar
    minimised: Scalar


class Term(nn.Module):
    """One summand of an objective; subclass it for one of your own.

    A term may have parameters. They are trained with the model's, unless the term has an optimiser of its own
    (`make_optimizer`), which then minimises `own_loss` after every step of the model; a discriminator is such a term.
    Its state is part of a run's checkpoints.

    Attributes:
        kl_weight: The weight of the KL in nats that suits a reconstruction term's scale, for latents of up to 128
            numbers; None for other terms.
        is_likelihood: Whether a reconstruction term is in nats, so that the KL's weight holds for latents of any size.
        is_adaptive: Whether the weight is also multiplied by the ratio of the other terms' gradient to this one's.
        follows_schedule: Whether the rate of the term's own optimiser follows that of the model's, from its own start.
        sees_modes: Whether `own_loss` gets decoded modes, in evaluation mode, instead of the model's own output.
    """

    kl_weight: float | None = None
    is_likelihood = False
    is_adaptive = False
    follows_schedule = False
    sees_modes = False

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, to be minimised.

        Args:
            output: What the model gave.
            images: The images that it should have given, `[b, 3, h, w]` in [0, 1].
        """
        raise NotImplementedError

    def evaluate(self, output: ModelOutput, images: Images) -> TermValue:
        """The mean over the batch, as it is reported and as it is minimised.

        Raises:
            ShapeError: If `forward` gives anything else than one value per item.
        """
        values = self(output, images)
        if not isinstance(values, Tensor) or values.shape != (len(images),):
            given = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ShapeError(
                f"{type(self).__name__} must give one value per item, [{len(images)}], got {given}; do not average over"
                " the batch."
            )
        mean = values.mean()
        return TermValue(mean, mean)

    def attach(self, backbone: FrozenBackbone) -> None:
        """Take what the term needs of the encoder's network; called once, before a training begins."""

    def default_weight(self, others: Sequence["Term"], latent_size: int) -> float:  # noqa: ARG002 - subclasses do
        """The term's weight where none is given, beside other terms, for latents of some size."""
        return 1.0

    def make_optimizer(self) -> Optimizer | None:
        """An optimiser for the term's own parameters; None if the model's takes them."""
        return None

    def own_loss(self, output: ModelOutput, images: Images) -> Scalar:
        """The loss of the term's own optimiser; no gradient flows from it to the model."""
        raise NotImplementedError

    def own_start(self, steps_per_epoch: int, steps: int) -> int | None:  # noqa: ARG002 - subclasses do
        """The step from which on the term's own optimiser steps; None for as soon as the term counts.

        Args:
            steps_per_epoch: Steps of an epoch.
            steps: Steps of the whole run.
        """
        return None

    @property
    def has_optimizer(self) -> bool:
        """Whether the term has an optimiser of its own."""
        return type(self).make_optimizer is not Term.make_optimizer


class WeightedTerm(nn.Module):
    """A term with its weight, and how the weight changes in the course of a run.

    Attributes:
        term: The term.
        weight: Its weight once a schedule is over; None for the term's default beside others.
        start_epoch: The epoch, counted from 0, from which on the term counts.
        start_step: The step, counted from 0, from which on it counts.
        start_share: Share of the run after which it counts.
        schedule: "constant", "linear" (a warm-up) or "cyclic".
        schedule_epochs: Length of the warm-up, or of a cycle.
    """

    def __init__(
        self,
        term: Term,
        *,
        weight: float | None = None,
        start_epoch: int = 0,
        start_step: int = 0,
        start_share: float = 0.0,
        schedule: str = "constant",
        schedule_epochs: int = 1,
    ) -> None:
        """Weight a term.

        Args:
            term: The term.
            weight: What it is multiplied with, at least 0; the term's default if None.
            start_epoch: The epoch, counted from 0, from which on it counts.
            start_step: The step, counted from 0, from which on it counts.
            start_share: Share of the run after which it counts, in [0, 1); the latest of the three starts counts.
            schedule: How its weight grows from there: constant, linear (a warm-up), cyclic.
            schedule_epochs: Epochs of the warm-up, or of a cycle.

        Raises:
            InvalidOptionError: If a number is out of range, or `term` is no term.
            UnknownNameError: For another schedule.
        """
        super().__init__()
        if not isinstance(term, Term):
            raise InvalidOptionError(f"A term must be an objectives.Term, got {type(term).__name__}.")
        _check_methods(term)
        if schedule not in SCHEDULES:
            raise UnknownNameError("schedule", schedule, SCHEDULES)
        check_nonnegative(weight=0 if weight is None else weight)
        check_positive(schedule_epochs=schedule_epochs)
        check_nonnegative(start_epoch=start_epoch, start_step=start_step)
        check_share(start_share=start_share)
        self.term = term
        self.weight = weight
        self.start_epoch = start_epoch
        self.start_step = start_step
        self.start_share = start_share
        self.schedule = schedule
        self.schedule_epochs = schedule_epochs

    @property
    def starts_later(self) -> bool:
        """Whether the term does not count from the first step on."""
        return bool(self.start_epoch or self.start_step or self.start_share)

    def start(self, steps_per_epoch: int, steps: int) -> int:
        """The step, counted from 0, from which on the term counts, in a run of so many steps."""
        return first_step(
            self.start_epoch, self.start_step, self.start_share, steps_per_epoch=steps_per_epoch, steps=steps
        )

    def weight_at(self, step: int, steps_per_epoch: int, final: float, steps: int = 0) -> float:
        """The weight at a step of a run, counted from 0, on its way to the final one."""
        started = step - self.start(steps_per_epoch, steps)
        if started < 0:
            return 0.0
        return SCHEDULES[self.schedule](final, self.schedule_epochs * steps_per_epoch)(started)


def first_step(epoch: int, step: int, share: float, *, steps_per_epoch: int, steps: int) -> int:
    """The latest of three starts, as a step of a run: an epoch, a step, and a share of the run's steps."""
    return max(epoch * steps_per_epoch, step, round(share * steps))


def _check_methods(term: Term) -> None:
    kind = type(term)
    if "_modules" not in vars(term):
        raise InvalidOptionError(f"{kind.__name__}.__init__ must call super().__init__().")
    if kind.forward is Term.forward and kind.evaluate is Term.evaluate:
        raise InvalidOptionError(f"The term {kind.__name__} has no forward(output, images).")
    if term.has_optimizer and kind.own_loss is Term.own_loss:
        raise InvalidOptionError(f"The term {kind.__name__} has an optimiser, and no own_loss(output, images) for it.")


class MakeSchedule(Protocol):
    """Makes a schedule."""

    def __call__(self, beta: float, steps: int, /) -> Schedule:
        """Make a schedule that ends at a weight."""


def _constant(beta: float, _steps: int, /) -> Schedule:
    return constant(beta)


SCHEDULES: Mapping[str, MakeSchedule] = MappingProxyType(
    {"constant": _constant, "linear": linear_warmup, "cyclic": cyclic}
)
"""Schedules by name: from the final weight and a number of steps."""
