from pathlib import Path
from typing import Any

import pytest

import transfervae as tv
from tests.runs import Small
from transfervae.files import read_json
from transfervae.training import RECIPES, read_recipe
from transfervae.training.recipes import part_of

SMALL = Small()
ENGINE = {**SMALL.engine, "cache": "off"}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "rae"])  # whose networks are fetched
def test_every_recipe_trains_and_its_choices_are_recorded(recipe: str, tmp_path: Path) -> None:
    model: dict[str, Any] = {"backbone": tv.Spec("timm:test_resnet", weights=None), "image_size": 32}
    data = {**SMALL.dataset, "faces": 20}
    tv.train(model, out=tmp_path, recipe=recipe, epochs=1, dataset=data, engine=ENGINE, metrics=("rmse",))
    config, chosen = read_json(tmp_path / "config.json"), read_recipe(recipe)
    assert config["head"]["name"] == tv.Spec.parse(chosen["head"]).name
    objective = chosen["objective"]
    assert list(config["objective"]) == (objective.split(",") if isinstance(objective, str) else list(objective))
    assert config["optimizer"]["name"] == chosen["optimizer"]["name"]
    vae = tv.TransferVAE.from_pretrained(tmp_path / "model")
    if recipe.startswith("sharp"):
        assert vae.latent_shape == (16, 4, 4)
        assert vae.backbone.provenance.node == tuple(tv.backbones.fine_nodes("timm:test_resnet"))


def test_what_is_given_wins_over_a_recipe() -> None:
    sharp = read_recipe("sharp")
    assert part_of(sharp, "backbone", "packaged") == tv.Spec("packaged", node="fine")
    assert part_of(sharp, "backbone", tv.Spec("packaged", node=1)) == tv.Spec("packaged", node=1)
    assert part_of(sharp, "head", "gaussian") == "gaussian"
    assert part_of(sharp, "head") == tv.Spec("spatial", latent_dim=16)
