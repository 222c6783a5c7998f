from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfervae.errors import InvalidOptionError, TransferVAEError, UnknownNameError
from transfervae.losses import RECONSTRUCTIONS
from transfervae.training import EngineOptions, TrainOptions


@given(name=st.sampled_from(sorted(RECONSTRUCTIONS)))
def test_beta_is_the_terms_own_unless_given(name: str) -> None:
    assert TrainOptions(reconstruction=name).target_beta == RECONSTRUCTIONS[name].beta
    assert TrainOptions(reconstruction=name, beta=0.25).target_beta == 0.25


@given(epochs=st.integers(1, 5), steps=st.integers(1, 50))
def test_schedules_count_in_epochs(epochs: int, steps: int) -> None:
    linear = TrainOptions(beta=2.0, beta_schedule="linear", beta_epochs=epochs).schedule(steps)
    assert linear(0) == 0
    assert linear(epochs * steps) == linear(10 * epochs * steps) == 2.0
    cycle = TrainOptions(beta=2.0, beta_schedule="cyclic", beta_epochs=epochs).schedule(steps)
    assert cycle(0) == cycle(epochs * steps) == 0
    assert TrainOptions(beta=2.0).schedule(steps)(0) == 2.0


@pytest.mark.parametrize(
    "options", [{"latent_dim": 0}, {"held_out": 1.0}, {"beta": -1.0}, {"learning_rate": float("nan")}, {"seed": -1}]
)
def test_numbers_out_of_range_are_named(options: dict[str, float]) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        TrainOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"decoder": "resiz"}, {"head": "spacial"}, {"reconstruction": "rms"}, {"beta_schedule": "liner"}],
)
def test_names_are_suggested(options: dict[str, str]) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean"):
        TrainOptions(**options)  # type: ignore[arg-type]


def test_an_impossible_image_size_is_refused() -> None:
    with pytest.raises(TransferVAEError):
        TrainOptions(image_size=(0, 3))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_cache_may_be_a_path() -> None:
    assert EngineOptions(cache=Path("features")).cache == "features"
    for wrong in ("", 5, True, None):
        with pytest.raises(InvalidOptionError, match="cache must be"):
            EngineOptions(cache=wrong)  # type: ignore[arg-type]
