from pathlib import Path
from typing import Any

import pytest

from transfervae.errors import InvalidOptionError, UnknownNameError, UnknownOptionError
from transfervae.training import DataOptions, EngineOptions, OptimizerOptions
from transfervae.training._config import make_group


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DataOptions, {"val": 1.0}),
        (DataOptions, {"batch_size": 0}),
        (DataOptions, {"workers": -1}),
        (OptimizerOptions, {"learning_rate": float("nan")}),
        (OptimizerOptions, {"clip": 0.0}),
        (OptimizerOptions, {"betas": (0.9, 1.0)}),
        (OptimizerOptions, {"ema": 1.0}),
        (OptimizerOptions, {"accumulate": 0}),
        (OptimizerOptions, {"warmup_epochs": -1.0}),
        (EngineOptions, {"num_nodes": 0}),
    ],
)
def test_numbers_out_of_range_are_named(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        kind(**options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (OptimizerOptions, {"name": "adma"}),
        (OptimizerOptions, {"schedule": "cosin"}),
        (EngineOptions, {"memory_format": "chanels_last"}),
    ],
)
def test_names_are_suggested(kind: Any, options: dict[str, str]) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean"):
        kind(**options)


def test_a_group_is_made_of_a_mapping() -> None:
    assert make_group(DataOptions, {"val": 0.5}) == DataOptions(val=0.5)
    assert make_group(DataOptions, None) == DataOptions()
    with pytest.raises(UnknownOptionError, match="Did you mean 'learning_rate'"):
        make_group(OptimizerOptions, {"lerning_rate": 1.0})


@pytest.mark.usefixtures("without_shape_checks")
def test_a_cache_may_be_a_path() -> None:
    assert EngineOptions(cache=Path("features")).cache == "features"
    for wrong in ("", 5, True, None):
        with pytest.raises(InvalidOptionError, match="cache must be"):
            EngineOptions(cache=wrong)  # type: ignore[arg-type]
