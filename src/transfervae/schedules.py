"""Schedules for beta: functions from the training step, counted from 0, to the weight of the KL term."""

from collections.abc import Callable
from typing import TypeAlias

from transfervae.errors import InvalidOptionError
from transfervae.shapes import check_positive

Schedule: TypeAlias = Callable[[int], float]


def constant(beta: float) -> Schedule:
    """The same beta at every step (Higgins et al. 2017 for beta other than 1)."""
    return lambda _: beta


def linear_warmup(beta: float, steps: int) -> Schedule:
    """From 0 at step 0 in a straight line to `beta` at `steps`, then constant (Bowman et al. 2016).

    Args:
        beta: Final weight.
        steps: Length of the warm-up, at least 1.

    Raises:
        InvalidOptionError: If `steps` is below 1.
    """
    check_positive(steps=steps)
    return lambda step: beta * min(step / steps, 1.0)


def cyclic(beta: float, period: int, *, ramp: float = 0.5) -> Schedule:
    """Repeated warm-ups: in each period a linear rise over the fraction `ramp`, then constant (Fu et al. 2019).

    Args:
        beta: Weight at the top.
        period: Steps a cycle, at least 1.
        ramp: Fraction of the cycle that rises, in (0, 1].

    Raises:
        InvalidOptionError: If `period` is below 1 or `ramp` outside (0, 1].
    """
    check_positive(period=period)
    if not 0 < ramp <= 1:
        raise InvalidOptionError(f"ramp must lie in (0, 1], got {ramp}.")
    return lambda step: beta * min((step % period) / (ramp * period), 1.0)
