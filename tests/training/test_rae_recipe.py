"""The recipe of representation autoencoders, beside the numbers that its authors publish."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

import transfervae as tv
from tests.interop.test_rae import as_source, make_theirs
from tests.runs import Small
from transfervae.data import ToyFaces
from transfervae.heads import DeterministicHead
from transfervae.interop import load_diffusers_rae
from transfervae.objectives import FeatureDiscriminator
from transfervae.training import read_recipe, train
from transfervae.training.module import last_layer_of

PUBLISHED = {
    "objective.l1.weight": 1.0,
    "objective.perceptual.weight": 1.0,
    "objective.perceptual.network": "vgg",
    "objective.adversarial.weight": 0.75,
    "objective.adversarial.adaptive": True,
    "objective.adversarial.discriminator": "features",
    "objective.adversarial.network": "timm:vit_small_patch8_224.dino",
    "objective.adversarial.nodes": ["blocks.2", "blocks.5", "blocks.8", "blocks.11", "norm"],
    "objective.adversarial.image_size": 224,
    "objective.adversarial.loss": "hinge",
    "objective.adversarial.discriminator_start_epoch": 6,
    "objective.adversarial.start_epoch": 8,
    "objective.adversarial.augment": True,
    "objective.adversarial.rounded": True,
    "objective.adversarial.fresh": True,
    "objective.adversarial.learning_rate": 2e-4,
    "objective.adversarial.betas": (0.9, 0.95),
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 2e-4,
    "optimizer.min_learning_rate": 2e-5,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_epochs": 1.0,
    "optimizer.betas": (0.9, 0.95),
    "optimizer.weight_decay": 0.0,
    "optimizer.ema": 0.9978,
    "head.name": "deterministic",
    "head.tau": 0.8,
    "decoder": "vit",
    "dataset.batch_size": 512,
    "epochs": 16,
}


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """A tree's leaves by dotted name."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {key: value for entry in tree for key, value in flat(tree[entry], f"{name}.{entry}".strip(".")).items()}


def test_every_number_is_the_published_one() -> None:
    recipe = {name: deepcopy(value) for name, value in read_recipe("rae").items()}
    recipe.pop("backbone")
    assert flat(recipe) == PUBLISHED


def test_the_heads_of_the_discriminator_are_the_published_ones() -> None:
    discriminator = FeatureDiscriminator(network="timm:test_vit", weights="none", nodes=[0, 1])
    shapes = {tuple(value.shape[2:]) for value in discriminator.parameters() if value.ndim > 2}
    assert shapes == {(1,), (9,)}
    assert len(discriminator(torch.rand(1, 3, 32, 32)).logits) == 2


@pytest.fixture
def objective(tmp_path: Path) -> dict[str, Any]:
    """The recipe's objective with small networks."""
    path = tmp_path / "squeeze.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    tree = deepcopy(dict(read_recipe("rae")["objective"]))
    tree["perceptual"] |= {"network": "squeeze", "weights": path}
    tree["adversarial"] |= {"network": "timm:test_vit", "weights": "none", "nodes": [0, 1], "image_size": 32}
    return tree


def load_small() -> tv.TransferVAE:
    """A model of diffusers' class, with random weights, to be trained."""
    vae = load_diffusers_rae(as_source(make_theirs(noise_tau=0.8)))
    vae.requires_grad_(True)
    vae.backbone.requires_grad_(False)
    return vae.train()


def test_lambda_is_the_ratio_of_gradients_and_either_side_learns(objective: dict[str, Any]) -> None:
    vae, made = load_small(), tv.Objective.parse(objective)
    made.attach(vae.backbone)
    made.eval()  # spectral norm stands still
    images = torch.rand(4, 3, *vae.image_size, generator=torch.Generator().manual_seed(0))
    last = last_layer_of(vae.decoder)
    weights = {"l1": 1.0, "perceptual": 1.0, "adversarial": 0.75}

    def output() -> Any:
        return vae(images, generator=torch.Generator().manual_seed(1))

    value = made(output(), images, weights, last_layer=last)
    terms = {name: entry.term for name, entry in made.items()}
    by_hand = {name: torch.autograd.grad(term(output(), images).mean(), last)[0] for name, term in terms.items()}
    assert by_hand["perceptual"].norm() > 0
    expected = ((by_hand["l1"] + by_hand["perceptual"]).norm() / (by_hand["adversarial"].norm() + 1e-6)).clamp(0, 1e4)
    torch.testing.assert_close(value.ratios["adversarial"], expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        value.weighted["adversarial"], 0.75 * expected * value.raw["adversarial"], rtol=1e-3, atol=0
    )

    value.total.backward()
    assert all(parameter.grad is None for parameter in vae.backbone.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in vae.decoder.parameters())
    judge = terms["adversarial"]
    judge.zero_grad()
    judge.own_loss(output(), images).backward()
    assert all(parameter.grad is not None for parameter in judge.parameters())
    assert any(parameter.grad.any() for parameter in judge.parameters() if parameter.grad is not None)


def test_a_small_representation_autoencoder_trains(objective: dict[str, Any], tmp_path: Path) -> None:
    vae, small = load_small(), Small(batch_size=8)
    assert isinstance(vae.head, DeterministicHead)
    assert vae.head.tau == read_recipe("rae")["head"]["tau"]
    objective["adversarial"] |= {"discriminator_start_epoch": 1, "start_epoch": 2}
    before = {name: value.clone() for name, value in vae.decoder.state_dict().items()}
    result = train(
        vae,
        ToyFaces(24, vae.image_size, dtype=torch.uint8),
        out=tmp_path / "run",
        recipe="rae",
        epochs=3,
        objective=objective,
        dataset=small.dataset,
        engine={**small.engine, "gradient_checkpointing": True},
    )
    learnt = [row["train/own/adversarial"] for row in result.rows]
    assert learnt[0] == 0
    assert learnt[1] > 0
    assert learnt[2] > 0
    assert [row["train/weighted/adversarial"] != 0 for row in result.rows] == [False, False, True]
    assert result.rows[2]["train/ratio/adversarial"] > 0
    assert not all(torch.equal(value, result.vae.decoder.state_dict()[name]) for name, value in before.items())
    assert (tmp_path / "run" / "objective.safetensors").is_file()
    assert result.best["epoch"] == 3
