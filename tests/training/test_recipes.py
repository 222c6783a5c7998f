import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import transfervae as tv
from tests.runs import Small
from transfervae.errors import InvalidOptionError
from transfervae.files import read_json
from transfervae.metrics import make_metrics
from transfervae.training import RECIPES, cache_features, choose_recipe, read_recipe
from transfervae.training._run_folder import choose_monitor
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


@pytest.mark.parametrize(
    ("given", "head", "chosen"),
    [
        (None, None, "sharp"),
        (None, "spatial", "sharp"),
        (None, "deterministic", "sharp"),
        (None, "gaussian", "vector"),
        (None, "pooled", "vector"),
        ("seed", "spatial", "seed"),
    ],
)
def test_without_a_recipe_the_head_decides_and_the_reason_is_given(
    given: str | None, head: str | None, chosen: str
) -> None:
    name, why = choose_recipe(given, head)
    assert name == chosen
    assert bool(why) == (given is None)


@pytest.mark.parametrize("head", [None, "gaussian"])
def test_train_says_which_recipe_it_took(head: str | None, tmp_path: Path) -> None:
    model: dict[str, Any] = {"backbone": tv.Spec("timm:test_resnet", weights=None), "image_size": 32, "head": head}
    said = io.StringIO()
    console = Console(file=said, width=200)
    data = {**SMALL.dataset, "faces": 20}
    result = tv.train(model, out=tmp_path, epochs=1, dataset=data, engine=ENGINE, metrics=("rmse",), console=console)
    name = "sharp" if head is None else "vector"
    assert f"recipe {name}: " in said.getvalue()
    nodes = {"sharp": tv.backbones.fine_nodes, "vector": tv.backbones.broad_nodes}[name]("timm:test_resnet")
    assert result.vae.backbone.provenance.node == tuple(nodes)


def test_features_are_cached_where_a_run_reads_them(tmp_path: Path) -> None:
    backbone = tv.Spec("timm:test_resnet", weights=None)
    data, engine = {**SMALL.dataset, "faces": 20}, {**SMALL.engine, "cache": tmp_path / "features"}
    cache_features(backbone, None, tmp_path / "features", image_size=32, dataset=data, engine=SMALL.engine)
    model = {"backbone": backbone, "image_size": 32}
    result = tv.train(model, out=tmp_path / "run", epochs=1, dataset=data, engine=engine, metrics=("rmse",))
    assert result.rows


def test_the_last_epoch_is_kept_where_a_term_learns_too() -> None:
    metrics = make_metrics(("rmse",))
    plain, judged = tv.Objective("l1"), tv.Objective("l1", tv.Spec("adversarial", discriminator="patch", width=8))
    assert choose_monitor(None, plain, metrics, None).name == "val/loss"
    assert choose_monitor(None, judged, metrics, None).name == "epoch"
    assert choose_monitor("rmse", judged, metrics, None).name == "val/rmse"
    with pytest.raises(InvalidOptionError, match="patience needs a figure"):
        choose_monitor(None, judged, metrics, 3)
