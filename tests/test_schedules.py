from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfervae.errors import InvalidOptionError
from transfervae.schedules import constant, cyclic, linear_warmup

BETAS = st.floats(0, 100)
STEPS = st.integers(0, 5000)
LENGTHS = st.integers(1, 1000)


@given(beta=BETAS, step=STEPS)
def test_constant_is_beta_at_every_step(beta: float, step: int) -> None:
    assert constant(beta)(step) == beta


@given(beta=BETAS, steps=LENGTHS, step=STEPS)
def test_linear_warmup_agrees_with_exact_fractions(beta: float, steps: int, step: int) -> None:
    expected = Fraction(beta) * min(Fraction(step, steps), Fraction(1))
    assert linear_warmup(beta, steps)(step) == pytest.approx(float(expected))


@given(beta=BETAS, steps=LENGTHS)
def test_linear_warmup_starts_at_zero_and_arrives_exactly(beta: float, steps: int) -> None:
    schedule = linear_warmup(beta, steps)
    assert (schedule(0), schedule(steps), schedule(10 * steps)) == (0.0, beta, beta)


@given(beta=BETAS, period=LENGTHS, parts=st.integers(1, 8), step=STEPS)
def test_cyclic_agrees_with_exact_fractions(beta: float, period: int, parts: int, step: int) -> None:
    ramp = parts / 8
    expected = Fraction(beta) * min(Fraction(step % period, period) / Fraction(ramp), Fraction(1))
    assert cyclic(beta, period, ramp=ramp)(step) == pytest.approx(float(expected))


@given(beta=BETAS, period=LENGTHS, step=STEPS)
def test_cyclic_repeats(beta: float, period: int, step: int) -> None:
    schedule = cyclic(beta, period)
    assert schedule(step) == schedule(step + period)


@pytest.mark.parametrize("steps", [0, -3])
def test_lengths_below_one_are_refused(steps: int) -> None:
    with pytest.raises(InvalidOptionError, match="steps must be a whole number of at least 1"):
        linear_warmup(1.0, steps)
    with pytest.raises(InvalidOptionError, match="period must be a whole number of at least 1"):
        cyclic(1.0, steps)


@pytest.mark.parametrize("ramp", [0.0, -0.5, 1.01, float("nan")])
def test_a_ramp_outside_its_range_is_refused(ramp: float) -> None:
    with pytest.raises(InvalidOptionError, match="ramp"):
        cyclic(1.0, 10, ramp=ramp)
