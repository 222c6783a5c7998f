"""Commands that compute for long: train, and cache."""

import inspect
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transfervae.cache import DTYPES, FeatureCache
from transfervae.cli.app import INTERRUPTED, app, readable, say, screen
from transfervae.cli.declared import Section, Tree, add_command, complete, scan, spell_flag, spell_key
from transfervae.cli.sections import IMAGE_SIZE, Choices, is_completing, read_config_option, words
from transfervae.errors import InvalidOptionError, RunFolderError
from transfervae.options import Option, Spec, options_of, plain

OUT = "runs/faces"
RECORDS = ("images", "run_id", "versions", "transfervae_format")
"""The entries of a run's configuration other than options."""

DATA = inspect.Parameter(
    "data",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of images, flat or nested (JPEG, PNG, WebP, TIFF, BMP); drawn faces if left out.",
            show_default=False,
        ),
    ],
)

TRAIN_ABOUT = """Train a model on a folder of images, and leave model, figures and pictures in a folder.

The backbone stays frozen; a head and a decoder are trained. Each part has options of its own: --head deterministic
--help shows those of that head.

Example: transfervae train photos --backbone vgg19 --image-size 128 --epochs 5 --out runs/faces
"""

CACHE_ABOUT = """Compute a backbone's features of images once, for any number of trainings.

A build that was interrupted goes on where it stopped when the same command is given again.

Example: transfervae cache photos --out features    then: transfervae train photos --engine.cache features
"""


def add_train() -> None:
    """Add the command `train`, with the options of the parts that the command line chooses."""
    from transfervae import training
    from transfervae.training.recipes import options_beneath

    out = Path(scan(words(), "--out") or OUT)
    resumes = "--resume" in words()
    if resumes and scan(words(), "--config") is not None:
        raise InvalidOptionError("--resume goes on with the run's own options; leave --config out.")
    file = _read_run(out) if resumes else read_config_option()
    begins_with = scan(words(), "--init-from") or file.get("init_from")
    if begins_with and not resumes and not is_completing():
        file = {**training.read_model_options(begins_with), **file}
    head = scan(words(), "--head") or _name_in(file.get("head"))
    recipe, why = training.choose_recipe(scan(words(), "--recipe") or file.pop("recipe", None), head)
    defaults = training.read_recipe(recipe)
    choices = Choices({name: value for name, value in file.items() if name not in (*RECORDS, "recipe")}, defaults)
    run_section = _run_section(recipe)
    sections = [
        run_section,
        choices.backbone(),
        choices.part("head"),
        choices.part("decoder"),
        *([choices.part("prior")] if choices.is_named("prior") else []),
        *choices.objective(),
        Section("dataset", "Images", options_of(training.DataOptions)),
        Section("optimizer", "Optimizer", options_of(training.OptimizerOptions)),
        Section("engine", "Engine", options_of(training.EngineOptions)),
    ]

    def run(given: Tree) -> None:
        beneath = options_beneath(defaults, choices.names())
        layers = ((beneath, spell_key), (choices.file, spell_key), (given, spell_flag))
        _train(complete(sections, *layers), resume=resumes, why=why)

    add_command(app, "train", _without_data(sections), run, about=TRAIN_ABOUT, positionals=[DATA])


def add_cache() -> None:
    """Add the command `cache`."""
    from transfervae import training

    recipe, _ = training.choose_recipe(scan(words(), "--recipe"), None)
    beneath = {"backbone": dict(Spec.parse(training.read_recipe(recipe)["backbone"], "backbone").options)}
    choices = Choices({}, {})
    options = {
        "data": Option("data", list[str] | None, None, ""),
        "out": Option("out", str, "features", "The cache's folder."),
        "verify": Option("verify", bool, False, "Compute nothing: compare the checksums of the cache in --out."),
        "recipe": Option("recipe", str, recipe, "Recipe of the later runs; it decides which nodes are read."),
        "image_size": IMAGE_SIZE,
        "dtype": options_of(training.cache_features)["dtype"]._replace(help=f"Stored as: {', '.join(DTYPES)}."),
        "seed": options_of(training.cache_features)["seed"],
    }
    sections = [
        Section("", "Cache", options),
        choices.backbone(),
        Section("dataset", "Images", options_of(training.DataOptions)),
        Section(
            "engine", "Engine", options_of(training.EngineOptions, skip=("cache", "compile", "gradient_checkpointing"))
        ),
    ]
    add_command(
        app,
        "cache",
        _without_data(sections),
        lambda given: _cache(complete(sections, (beneath, spell_key), (given, spell_flag))),
        about=CACHE_ABOUT,
        positionals=[DATA],
    )


def _run_section(recipe: str) -> Section:
    from transfervae import training

    declared = options_of(training.train)
    names = Option("metrics", Sequence[str], declared["metrics"].default, "")
    return Section(
        "",
        "Run",
        {
            "out": Option("out", str, OUT, "The run's folder."),
            "config": Option("config", str | None, None, "Read options from a YAML file; the command line wins."),
            "print_config": Option("print_config", bool, False, "Print all options as YAML, and do nothing else."),
            "resume": Option(
                "resume", bool, False, "Continue the run in --out from its last full epoch, with its options."
            ),
            "recipe": Option("recipe", str, recipe, f"Defaults of the parts below: {', '.join(training.RECIPES)}."),
            "data": Option("data", str | list[str] | None, None, ""),
            "val_data": Option(
                "val_data",
                str | list[str] | None,
                None,
                "Folder of held-out images; a fraction of the data if left out.",
            ),
            "image_size": IMAGE_SIZE,
            "init_from": Option("init_from", str | None, None, "Begin with the weights of a saved model, or of a run."),
            "freeze": Option("freeze", Sequence[str], [], "Parts that are not trained: head, decoder."),
            "epochs": declared["epochs"],
            "patience": declared["patience"],
            "seed": declared["seed"],
            "metrics": names._replace(help="Metrics of held-out images, separated by commas."),
            "monitor": declared["monitor"],
            "loggers": Option("loggers", Sequence[str], [], f"Separated by commas: {', '.join(training.LOGGERS)}."),
        },
    )


def _without_data(sections: Sequence[Section]) -> list[Section]:
    """Without the data, which stands on the command line without a name."""
    return [
        section._replace(options={name: option for name, option in section.options.items() if name != "data"})
        for section in sections
    ]


def _name_in(part: Any) -> str | None:
    """The name of a part as a file holds it."""
    name = part.get("name") if isinstance(part, dict) else part
    return name if isinstance(name, str) else None


def _train(tree: Tree, *, resume: bool, why: str) -> None:
    from transfervae import training

    for name in ("config", "resume"):
        tree.pop(name)
    out, asked = Path(tree.pop("out")), tree.pop("print_config")
    if asked:
        screen.print(
            yaml.safe_dump(plain(tree), sort_keys=False), end="", markup=False, highlight=False, soft_wrap=True
        )
        return
    model: Tree = {
        name: tree.pop(name) for name in ("backbone", "image_size", "head", "decoder", "prior") if name in tree
    }
    data = tree.pop("data")
    console = screen if training.is_first_process() else Console(quiet=True)
    if why and not resume:
        console.print(f"recipe {tree['recipe']}: {why}; --recipe NAME takes another", highlight=False)
    try:
        result = training.train(model, _one_or_all(data), out=out, resume=resume, console=console, **tree)
    except KeyboardInterrupt:
        if (out / "config.json").exists():
            say(f"To go on from the last full epoch: transfervae train --resume --out {shlex.quote(str(out))}", console)
        raise typer.Exit(INTERRUPTED) from None
    if training.is_first_process():
        _print_result(result, out)


def _cache(tree: Tree) -> None:
    from transfervae import training
    from transfervae.progress import progress_bar

    out = tree["out"]
    if tree["verify"]:
        with progress_bar(screen, "checking") as progress:
            FeatureCache(out).verify(progress)
        say(f"all files in {out} are as they were written")
        return
    console = screen if training.is_first_process() else Console(quiet=True)
    names = ("image_size", "dtype", "seed", "recipe", "dataset", "engine")
    options: dict[str, Any] = {name: tree[name] for name in names}
    try:
        built = training.cache_features(tree["backbone"], _one_or_all(tree["data"]), out, console=console, **options)
    except KeyboardInterrupt:
        say("To go on where it stopped, give the same command again.", console)
        raise typer.Exit(INTERRUPTED) from None
    say(
        f"{len(built)} images and their features are in {out}; to train on them: transfervae train …"
        f" --engine.cache {out}",
        console,
    )


def _one_or_all(data: str | list[str] | None) -> str | list[str] | None:
    return data[0] if isinstance(data, list) and len(data) == 1 else data


def _read_run(out: Path) -> Tree:
    """The options of the run in a folder.

    Raises:
        RunFolderError: If there is no run, or one that only its program can continue.
    """
    from transfervae.training._run_folder import RunFolder

    config = RunFolder(out).read_config()
    own = [entry for entry in json.dumps(config).split('"') if entry.startswith("own:")]
    if own:
        raise RunFolderError(
            f"The run in {str(out)!r} has parts of your own ({', '.join(name.removeprefix('own:') for name in own)});"
            " resume it from Python, with train(..., resume=True)."
        )
    return config


def _print_result(result: Any, out: Path) -> None:
    best = result.best
    table = Table(title=f"Held-out images, epoch {int(best['epoch'])} (the saved one)", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in best.items():
        if name.startswith("val/") and "/" not in name.removeprefix("val/") and name != "val/loss":
            table.add_row(*_figure(name.removeprefix("val/"), value, math.prod(result.vae.latent_shape)))
    table.add_row("RMSE of the mean training image", f"{result.mean_image_rmse:.4f}")
    screen.print(table)
    for verdict in result.verdicts:
        screen.print(f"[yellow]{escape(verdict)}[/]", highlight=False)
    for name, what in (
        ("reconstructions.png", "held-out originals above reconstructions"),
        ("samples.png", "draws from the prior"),
        ("history.png", "loss terms over epochs"),
        ("architecture.png", "the model"),
        ("model", "for TransferVAE.from_pretrained, and the other commands"),
    ):
        screen.print(f"{escape(readable(out / name))}  [dim]{what}[/]", soft_wrap=True, highlight=False)


def _figure(name: str, value: float, latent_size: int) -> tuple[str, str]:
    """A metric's row, in the units that people know it by."""
    shown = {
        "rmse": ("RMSE", f"{value:.4f}"),
        "psnr": ("PSNR (dB)", f"{value:.2f}"),
        "ssim": ("SSIM", f"{value:.3f}"),
        "kl": ("KL (nats)", f"{value:.1f}"),
        "active_units": ("active units", f"{value:.0f} of {latent_size}"),
    }
    return shown.get(name, (name, f"{value:.4g}"))
