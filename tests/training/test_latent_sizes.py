"""The default objective suits latents of any size: held-out error falls, and most numbers are used."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import transfervae as tv
from tests.runs import Small
from tests.samples import make_backbone
from transfervae.losses import scaled_beta

HEADS: dict[str, dict[str, Any]] = {
    "8": {"head": tv.Spec("gaussian", latent_dim=8)},
    "64": {"head": tv.Spec("pooled", latent_dim=64)},
    "16384": {"head": tv.Spec("spatial", latent_dim=64), "node": 0},
}


@pytest.mark.parametrize("size", HEADS)
def test_held_out_error_falls_and_the_latent_is_used(size: str, tmp_path: Path) -> None:
    options = dict(HEADS[size])
    node = options.pop("node", None)
    small = Small(faces=96, epochs=4, backbone="packaged", weights="default", node=node, learning_rate=3e-3)
    result = small.train(tmp_path / "run", model={**small.model, **options, "latent_dim": None})
    assert math.prod(result.vae.latent_shape) == int(size)
    errors = [row["val/rmse"] for row in result.rows]
    assert errors[-1] < 0.95 * errors[0]
    assert errors[-1] < result.mean_image_rmse
    report = tv.evaluate(result.vae, small.open(), metrics=("rmse", "information"))
    assert report.figures["rmse"] < report.figures["draw_rmse"]  # a decoder that needs the noise fails on the mode
    assert report.figures["information"] > 4


@pytest.mark.parametrize("size", [8, 128, 129, 1024, 65536])
def test_a_nat_per_number_costs_the_same_beyond_128(size: int) -> None:
    for name, term in tv.losses.RECONSTRUCTIONS.items():
        weight = tv.Objective(name, "kl").final_weights(size)["kl"]
        assert weight == term.beta_for(size)
        if term.is_likelihood:
            assert weight == term.beta
        else:
            assert weight * max(size, 128) == pytest.approx(128 * term.beta)
            assert weight == scaled_beta(term.beta, size)
    assert tv.Objective("rmse", tv.Spec("kl", weight=0.3)).final_weights(size)["kl"] == 0.3


def test_the_objective_takes_the_latents_size_from_the_output() -> None:
    vae = tv.build_vae(make_backbone("resnet"), image_size=32, head=tv.Spec("spatial", latent_dim=256))
    images = torch.rand(2, 3, 32, 32)
    output = vae(images)
    value = tv.Objective("rmse", "kl")(output, images)
    weight = scaled_beta(1e-4, output.latent[0].numel())
    torch.testing.assert_close(value.weighted["kl"], weight * value.raw["kl"])
    torch.testing.assert_close(value.total, tv.losses.elbo(output, images).total)
