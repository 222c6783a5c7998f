"""A run's configuration as plain values: written to `config.json`, read back, and compared on resuming."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pytorch_lightning.loggers import Logger
from torchmetrics import MetricCollection

from transfervae.decoders import DECODERS
from transfervae.errors import InvalidOptionError, RunFolderError
from transfervae.heads import HEADS
from transfervae.metrics import METRICS
from transfervae.model import TransferVAE
from transfervae.objectives import Objective
from transfervae.options import check_values, options_of, plain
from transfervae.priors import PRIORS
from transfervae.saving import OWN, describe_part
from transfervae.training.options import DataOptions, EngineOptions, OptimizerOptions

Group = TypeVar("Group", DataOptions, OptimizerOptions, EngineOptions)

MODEL_KEYS = ("image_size", "backbone", "head", "decoder", "prior")
"""The arguments of `build_vae`, which make a run's model."""

MAY_DIFFER = ("epochs", "engine", "loggers")
"""Options that may change on resuming; the number of epochs may only grow."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The configuration of a run, all of it plain values or groups of options.

    Attributes:
        data: Folder of images, or several; None for drawn faces; of a data set of one's own its class.
        val_data: The same for held-out images; None if they are a fraction of the data.
        image_size: (height, width).
        backbone: Name and options.
        head: Name and options.
        decoder: Name and options.
        prior: Name and options.
        objective: Options by term.
        metrics: Names.
        monitor: The figure that tells the best epoch.
        init_from: The folder of the model that was trained on; None for new weights.
        freeze: Parts that stay as they are.
        epochs: Passes over the training images.
        patience: Epochs without a better one after which the run ends; None for no early end.
        seed: Of the split, the weights, the order and the draws.
        loggers: Names.
        dataset: How the data set is read and split.
        optimizer: How the model is optimised.
        engine: How the run is carried out.
    """

    data: str | list[str] | None
    val_data: str | list[str] | None
    image_size: list[int]
    backbone: Mapping[str, Any]
    head: Mapping[str, Any]
    decoder: Mapping[str, Any]
    prior: Mapping[str, Any]
    objective: Mapping[str, Any]
    metrics: list[Any]
    monitor: str
    init_from: str | None
    freeze: list[str]
    epochs: int
    patience: int | None
    seed: int
    loggers: list[str]
    dataset: DataOptions
    optimizer: OptimizerOptions
    engine: EngineOptions

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them; `--config` and `tv.train` take them."""
        values: dict[str, Any] = plain(asdict(self))
        return values

    def own_parts(self) -> list[str]:
        """Parts of the run that only its own program can pass again: "head MyHead", and so on."""
        values = self.to_dict()
        named = {name: values[name] for name in ("data", "val_data")}
        named |= {name: values[name]["name"] for name in ("backbone", "head", "decoder", "prior")}
        own = [f"{kind} {name.removeprefix(OWN)}" for kind, name in named.items() if _is_own(name)]
        own += [f"term {name.removeprefix(OWN)}" for name in values["objective"] if _is_own(name)]
        return own + [f"metric {name.removeprefix(OWN)}" for name in values["metrics"] if _is_own(name)]

    def check_same(self, began: Mapping[str, Any], folder: Path) -> None:
        """Make sure that a run that is resumed is the one that began.

        Raises:
            RunFolderError: Naming what differs.
        """
        now = json.loads(json.dumps(self.to_dict()))
        now["dataset"].pop("workers")  # they make no difference to what is learned
        began = {**began, "dataset": {name: v for name, v in began.get("dataset", {}).items() if name != "workers"}}
        differing = [
            f"{name} is {now[name]!r} instead of {began.get(name)!r}"
            for name in now
            if name not in MAY_DIFFER and now[name] != began.get(name)
        ]
        if differing:
            raise RunFolderError(f"The run in {str(folder)!r} began with other options: {', '.join(differing)}.")
        if self.epochs < began["epochs"]:
            raise RunFolderError(f"The run in {str(folder)!r} has {began['epochs']} epochs; it can only be lengthened.")


def describe_model(vae: TransferVAE) -> dict[str, Any]:
    """The arguments of `build_vae` that make a model again, by `MODEL_KEYS`; parts of one's own by their class."""
    backbone = dict(plain(vae.backbone.config))
    backbone.pop("fingerprint", None)
    if str(backbone["name"]).startswith("module:"):
        backbone["name"] = f"{OWN}{backbone['name']}"
    return {
        "image_size": list(vae.image_size),
        "backbone": backbone,
        "head": describe_part(HEADS, vae.head),
        "decoder": describe_part(DECODERS, vae.decoder),
        "prior": describe_part(PRIORS, vae.prior),
    }


def describe_objective(objective: Objective) -> dict[str, Any]:
    """Options by term; terms of one's own by their class."""
    described: dict[str, Any] = plain(objective.to_dict())
    return described


def describe_metrics(metrics: MetricCollection) -> list[str]:
    """Names, those of metrics of one's own marked."""
    return [name if METRICS.spec_of(metric) is not None else f"{OWN}{name}" for name, metric in metrics.items()]


def describe_loggers(loggers: Sequence[str | Logger]) -> list[str]:
    """Names, those of loggers of one's own marked."""
    return [logger if isinstance(logger, str) else f"{OWN}{type(logger).__name__}" for logger in loggers]


def describe_data(data: object) -> str | list[str] | None:
    """Folders as absolute paths, so that a run can be resumed from anywhere; a data set of one's own by its class."""
    if data is None:
        return None
    if isinstance(data, str | os.PathLike):
        return os.path.abspath(data)  # noqa: PTH100 - links stay as they were named
    if isinstance(data, list | tuple) and all(isinstance(part, str | os.PathLike) for part in data):
        return [os.path.abspath(part) for part in data]  # noqa: PTH100
    return f"{OWN}{type(data).__name__}"


def make_group(kind: type[Group], given: Group | Mapping[str, Any] | None) -> Group:
    """A group of options from a mapping; None gives the defaults.

    Raises:
        UnknownOptionError: For an option that the group does not have.
        InvalidOptionError: For a value that cannot work.
    """
    if isinstance(given, kind):
        return given
    if given is None:
        return kind()
    if not isinstance(given, Mapping):
        raise InvalidOptionError(f"Expected a {kind.__name__} or a mapping of its options, got {given!r}.")
    check_values(kind.__name__, options_of(kind), given)
    return kind(**given)


def _is_own(name: object) -> bool:
    return isinstance(name, str) and name.startswith(OWN)
