"""Each verdict has a model that deserves it, and one that does not."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from transfervae.evaluation import Evidence, judge

FINE: dict[str, Any] = {
    "figures": {"rmse": 0.1, "chroma": 0.02, "active_units": 100},
    "baseline": {"rmse": 0.2, "chroma": 0.03},
    "latent_size": 128,
}


def rows(val: Sequence[float], train: Sequence[float]) -> list[Mapping[str, float]]:
    return [{"val/loss": one, "train/loss": other} for one, other in zip(val, train, strict=True)]


def test_a_good_model_gets_no_remark() -> None:
    assert judge(Evidence(**FINE)) == []
    assert judge(Evidence(**FINE, rows=rows([0.3, 0.2, 0.199], [0.3, 0.2, 0.198]))) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"figures": {"rmse": 0.21}}, ("Worse than the mean image", "0.2100", "0.2000", "--objective.kl.weight")),
        ({"figures": {"rmse": 0.21}, "has_pretrained_backbone": False}, ("weights are random",)),
        ({"figures": {"rmse": 0.21}, "rows": rows([0.3], [0.3])}, ("1 epoch is few",)),
        ({"figures": {"rmse": 0.1, "active_units": 63}}, ("Most of the latent is noise", "63 of 128")),
        ({"rows": rows([0.3, 0.2, 0.19], [0.3, 0.2, 0.1])}, ("Still improving", "--epochs 6")),
        ({"rows": rows([0.3, 0.2, 0.25], [0.3, 0.2, 0.1])}, ("Overfitting", "since epoch 2")),
        ({"figures": {"rmse": 0.1, "chroma": 0.04}}, ("Colours are lost", "--backbone.node")),
    ],
)
def test_a_model_that_deserves_a_verdict_gets_that_one(changes: dict[str, Any], words: Sequence[str]) -> None:
    (verdict,) = judge(Evidence(**{**FINE, **changes}))
    for word in words:
        assert word in verdict


@pytest.mark.parametrize(
    "changes",
    [
        {"figures": {"rmse": 0.1, "active_units": 64}},
        {"figures": {"rmse": 0.1, "active_units": 0}, "is_gaussian": False},
        {"rows": rows([0.3, 0.2, 0.201], [0.3, 0.2, 0.1])},  # within the noise of an epoch
        {"rows": rows([0.3, 0.2, 0.25], [0.3, 0.2, 0.24])},  # training became worse, too: no overfitting
        {"figures": {"rmse": 0.1, "chroma": 0.04}, "baseline": {"rmse": 0.2, "chroma": 0.001}},  # gray images
    ],
)
def test_a_model_that_comes_near_gets_none(changes: dict[str, Any]) -> None:
    assert judge(Evidence(**{**FINE, **changes})) == []
