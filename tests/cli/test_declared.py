import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.command import TINY, assert_one_line_error, assert_succeeds, environment, run
from transfervae.cli.declared import read_value, scan
from transfervae.decoders import DECODERS
from transfervae.heads import HEADS
from transfervae.objectives import TERMS

GAUSSIAN = {"name": "gaussian", "latent_dim": 128, "tau": 0.0, "law": "uniform"}
CHOSEN = ("--head", "deterministic", "--head.tau", "0.8", "--decoder", "vit", "--decoder.depth", "4")


def configuration(*options: str | Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(assert_succeeds(run("train", *options, "--print-config")))
    return values


def test_options_of_the_chosen_parts_are_taken() -> None:
    values = configuration(
        *CHOSEN, "--objective", "l1,kl", "--objective.kl.weight", "1e-4", "--backbone.node", "1,2", "--dataset.flips",
        "--image-size", "96x128", "--optimizer.betas", "0.5,0.9", "--seed", "3", "--engine.devices", "3",
    )  # fmt: skip
    assert values["head"] == {"name": "deterministic", "tau": 0.8, "law": "uniform"}
    assert values["decoder"]["depth"] == 4
    assert list(values["objective"]) == ["l1", "kl"]
    assert values["objective"]["kl"]["weight"] == 1e-4
    assert values["backbone"]["node"] == [1, 2]
    assert (values["image_size"], values["seed"]) == ("96x128", 3)
    assert values["dataset"]["flips"] is True
    assert values["optimizer"]["betas"] == [0.5, 0.9]
    assert values["engine"]["devices"] == 3


def test_a_printed_configuration_gives_the_same_again_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(assert_succeeds(run("train", *CHOSEN, "--print-config")))
    assert configuration("--config", file) == configuration(*CHOSEN)
    assert configuration("--config", file, "--head.tau", "0.5")["head"]["tau"] == 0.5
    assert configuration("--config", file, "--head", "gaussian")["head"] == GAUSSIAN


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_part_s_options_stand_in_a_printed_configuration(head: str, decoder: str) -> None:
    values = configuration("--head", head, "--decoder", decoder, "--objective", ",".join(TERMS))
    assert values["head"].keys() == {"name", *HEADS.options(head)}
    assert values["decoder"].keys() == {"name", *DECODERS.options(decoder)}
    assert values["objective"].keys() == set(TERMS)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--lerning-rate", "1"), ("Unknown option '--lerning-rate'", "'--optimizer.learning-rate'")),
        (("--head.queries", "1"), ("Unknown option '--head.queries'", "--head.tau")),
        (("--epochs", "five"), ("--epochs must be a whole number", "'five'")),
        (("--head.latent-dim", "many"), ("--head.latent-dim must be a whole number",)),
        (("--head", "gausian"), ("Did you mean 'gaussian'",)),
        (("--recipe", "sede"), ("Did you mean 'seed'",)),
        (("--loggers", "tensorbord", "--epochs", "1"), ("Did you mean 'tensorboard'",)),
        (("--metrics", "pnsr"), ("Did you mean 'psnr'",)),
        (("--monitor", "psn"), ("Did you mean 'psnr'",)),
        (("--config", "nowhere.yaml"), ("nowhere.yaml",)),
        (("--epochs",), ("--epochs",)),
    ],
)
def test_what_is_wrong_is_said_in_one_line(options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path) -> None:
    assert_one_line_error(run("train", *options, "--out", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head: {name: gaussian, latent: 3}", ("head.latent", "head.latent_dim")),
        ("hed: gaussian", ("'hed'", "Did you mean")),
        ("head: {class_path: torch.nn.Linear}", ("head",)),
        ("head: os.system", ("Unknown head 'os.system'",)),
        ("head: !!python/object/apply:os.system ['true']", ("cannot be read",)),
        ("objective: {class_path: {weight: 1}}", ("Unknown term 'class_path'",)),
        ("- a list", ("options by name",)),
        ("epochs: five", ("epochs must be a whole number",)),
    ],
)
def test_a_file_names_only_what_the_tables_have(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert_one_line_error(run("train", "--config", tmp_path / "run.yaml", "--out", tmp_path / "run"), *words)


def test_a_run_s_own_configuration_makes_it_again(tmp_path: Path) -> None:
    assert_succeeds(run("train", *TINY, "--epochs", "1", "--metrics", "rmse", "--out", tmp_path / "one"))
    again = ("train", "--config", tmp_path / "one" / "config.json", "--out", tmp_path / "two")
    assert_succeeds(run(*again))
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_help_shows_the_chosen_parts_and_defaults() -> None:
    screen = assert_succeeds(run("train", "--head", "deterministic", "--help"))
    for words in ("--head.tau", "--decoder.width", "--objective.kl.free-bits", "--engine.cache", "1e-3", "Optimizer"):
        assert words in screen or words == "1e-3"
    assert "--head.latent-dim" not in screen
    assert "0.001" in screen


def test_completion_knows_the_chosen_part() -> None:
    words = "transfervae train --head deterministic --head."
    process = subprocess.run(
        [sys.executable, "-m", "transfervae"],
        env={
            **environment(),
            "_TRANSFERVAE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": "4",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "--head.tau" in process.stdout, process.stderr
    assert "--head.latent-dim" not in process.stdout


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int | str, 3),
        ("auto", int | str, "auto"),
        ("none", int | None, None),
        ("1e-4", float, 1e-4),
        ("true", bool, True),
        ("a,b", list[str], ["a", "b"]),
        ("3", int | str | list[int], 3),
    ],
)
def test_text_is_read_as_the_declared_type(text: str, annotation: Any, value: object) -> None:
    assert read_value("--x", text, annotation) == value


def test_names_are_found_before_anything_is_parsed() -> None:
    assert scan(["train", "--head", "a", "--head=b"], "--head") == "b"
    assert scan(["train", "--head"], "--head") is None


def test_a_recipe_s_options_lie_beneath_files_and_the_command_line(tmp_path: Path) -> None:
    sharp = configuration("--recipe", "sharp")
    assert sharp["backbone"]["node"] == "fine"
    assert sharp["head"] == {"name": "spatial", "latent_dim": 16, "tau": 0.0, "law": "uniform"}
    assert sharp["objective"]["features"]["weight"] == 0.3
    assert sharp["optimizer"]["clip"] == 1.0
    other = configuration(
        "--recipe", "sharp", "--backbone", "packaged", "--decoder", "kl", "--objective", "l1,kl",
        "--head.latent-dim", "4",
    )  # fmt: skip
    assert (other["backbone"]["name"], other["backbone"]["node"]) == ("packaged", "fine")
    assert other["head"]["latent_dim"] == 4
    assert other["decoder"] == configuration("--decoder", "kl")["decoder"]
    assert other["objective"].keys() == {"l1", "kl"}
    assert other["objective"]["kl"]["weight"] == 1e-6
    (tmp_path / "run.yaml").write_text("recipe: sharp\nhead: gaussian\nbackbone: {name: packaged, node: 1}\n")
    from_file = configuration("--config", tmp_path / "run.yaml")
    assert from_file["head"] == GAUSSIAN
    assert from_file["backbone"]["node"] == 1
    assert from_file["optimizer"]["name"] == "adamw"


def test_a_term_named_twice_is_said() -> None:
    assert_one_line_error(run("train", "--objective", "l1,l1,kl"), "names a term twice")
