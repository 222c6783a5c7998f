"""What a user gives to a run works as documented, or is refused before it begins, in words of ours."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn

import transfervae as tv
from tests.runs import Small
from tests.samples import make_backbone
from transfervae.errors import DivergedError, InvalidOptionError, TransferVAEError
from transfervae.metrics import make_metrics
from transfervae.pictures import write_reconstructions, write_samples
from transfervae.summary import summarise

SMALL = Small(faces=12, epochs=2)


class Decoder(nn.Module):
    """A decoder of one's own, with batch normalisation and dropout."""

    def __init__(self, *, dropout: float = 0.0, top: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.latent_shape, self.image_size = (8,), (32, 32)
        self.before, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 3 * 32 * 32)
        self.dropout, self.after, self.top = nn.Dropout(dropout), nn.BatchNorm2d(3), top

    def forward(self, latents: Tensor) -> Tensor:
        maps = self.linear(self.dropout(self.before(latents))).view(-1, 3, 32, 32)
        images: Tensor = self.top * self.after(maps).sigmoid()
        return images


def model(decoder: nn.Module | None = None, prior: nn.Module | None = None) -> tv.TransferVAE:
    torch.manual_seed(0)
    backbone = make_backbone("resnet")
    head = tv.GaussianHead(backbone.feature_shape((32, 32)), latent_dim=8)
    decoder = decoder or tv.resize_decoder((8,), (32, 32), width=8)
    return tv.TransferVAE(backbone, head, decoder, prior=prior)


def test_a_summary_leaves_the_model_as_it_was() -> None:
    vae = model(Decoder()).train()
    vae.head.eval()
    modes = [module.training for module in vae.modules()]
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    summarise(vae)
    assert [module.training for module in vae.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_leave_the_model_as_it_was(tmp_path: Path) -> None:
    vae = model(Decoder(dropout=0.5)).train()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    write_reconstructions(tmp_path / "a.png", vae, torch.rand(2, 3, 32, 32))
    write_samples(tmp_path / "b.png", vae, count=2)
    assert vae.training
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


class Stop(pl.Callback):
    """Ends a run as Ctrl-C would, when its second epoch begins."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def dim(image: Tensor) -> Tensor:
    """A random transform that draws from torch's global generator."""
    return (image * (0.5 + 0.5 * torch.rand(()))).to(torch.uint8)


def test_a_run_with_own_randomness_resumes_bit_for_bit(tmp_path: Path) -> None:
    more: Any = {"transform": dim, "dataset": {**SMALL.dataset, "workers": 2}}

    def run(name: str, **others: Any) -> None:
        SMALL.train(tmp_path / name, model=model(Decoder(dropout=0.5)), **more, **others)

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", callbacks=[Stop()])
    torch.manual_seed(99)
    run("stopped", resume=True)
    tables = ((tmp_path / name / "metrics.csv").read_text() for name in ("whole", "stopped"))
    rows = [list(csv.DictReader(table.splitlines())) for table in tables]
    for one, other in zip(*rows, strict=True):
        assert {**one, "images_per_second": ""} == {**other, "images_per_second": ""}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_with_channels_last_resumes_bit_for_bit(precision: str, tmp_path: Path) -> None:
    small = Small(faces=30, epochs=3, memory_format="channels_last", precision=precision, node=[0, 1])
    whole = small.train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        small.train(tmp_path / "stopped", callbacks=[Stop()])
    small.train(tmp_path / "stopped", resume=True)
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]
    assert len(whole.rows) == 3


@pytest.mark.parametrize("name", ["loss", "term/rmse", "", "a b", "weighted/kl"])
def test_a_metric_cannot_take_the_name_of_another_figure(name: str) -> None:
    with pytest.raises(InvalidOptionError, match="A metric cannot be named"):
        make_metrics({name: torchmetrics.MeanMetric()})


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("given", ["rmse", torchmetrics.MeanMetric()])
def test_one_metric_is_no_list(given: Any) -> None:
    with pytest.raises(TransferVAEError, match="must be a list of metrics"):
        make_metrics(given)


@pytest.mark.parametrize(
    ("group", "options", "words"),
    [
        ("dataset", {"flips": "no"}, "flips of DataOptions must be"),
        ("dataset", {"workers": 1.5}, "workers of DataOptions must be"),
        ("dataset", {"val": "0.1"}, "val of DataOptions must be"),
        ("engine", {"compile": "false"}, "compile of EngineOptions must be"),
        ("optimizer", {"learning_rate": "1e-3"}, "learning_rate of OptimizerOptions must be"),
        ("optimizer", {"betas": [0.9, "a"]}, "betas of OptimizerOptions must be"),
    ],
)
def test_options_of_another_type_are_refused(group: str, options: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        tv.train(SMALL.model, out=tmp_path, **{group: options})
    assert not list(tmp_path.iterdir())


class Spoiled(tv.Term):
    """A term that gives NaN."""

    def forward(self, output: Any, images: Tensor) -> Tensor:
        values: Tensor = torch.full((len(images),), float("nan")) * output.latent.sum()
        return values


def test_a_term_without_weight_does_not_spoil_a_run(tmp_path: Path) -> None:
    result = SMALL.train(tmp_path, objective=["rmse", "kl", tv.WeightedTerm(Spoiled(), weight=0.0)])
    assert result.best["val/rmse"] < 1


def test_the_term_that_spoils_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="train/term/Spoiled is nan in epoch 1"):
        SMALL.train(tmp_path, objective=["rmse", "kl", Spoiled()])


@pytest.mark.parametrize("name", ["a.b", "keys", "items", "", "training", "forward", "a b"])
def test_names_that_terms_cannot_have_are_refused(name: str) -> None:
    term = Spoiled()
    term.name = name  # type: ignore[assignment]
    with pytest.raises(InvalidOptionError, match="A term cannot be named"):
        tv.Objective("rmse", term)


class Empty(tv.Term):
    """A term without a value."""


class Driven(tv.Term):
    """A term whose optimiser and loss are given."""

    def __init__(self, optimizer: Any, loss: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self._optimizer, self._loss = optimizer, loss

    def forward(self, output: Any, images: Tensor) -> Tensor:  # noqa: ARG002
        values: Tensor = self.scale * output.latent.flatten(1).sum(1)
        return values

    def make_optimizer(self) -> Any:
        return self._optimizer(self.parameters()) if callable(self._optimizer) else self._optimizer

    def own_loss(self, output: Any, images: Tensor) -> Any:  # noqa: ARG002
        return self._loss(self.scale)


class Lossless(Driven):
    """A term with an optimiser and nothing for it to minimise."""

    own_loss = tv.Term.own_loss


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


class Vector(torchmetrics.Metric):
    """A metric that gives two numbers."""

    higher_is_better = True

    def update(self, *_: Any) -> None:
        """Nothing."""

    def compute(self) -> Tensor:
        return torch.ones(2)


class BadPrior(nn.Module):
    """A prior whose draws are given."""

    is_scaled = False

    def __init__(self, draws: Any) -> None:
        super().__init__()
        self._draws = draws

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Any:  # noqa: ARG002
        return self._draws(count)


def fail(_: int) -> Tensor:
    raise RuntimeError("never")


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"objective": lambda: ["rmse", Empty()]}, "has no forward"),
        ({"objective": lambda: ["rmse", Lossless(sgd, None)]}, "no own_loss"),
        ({"objective": lambda: ["rmse", Driven(None, lambda scale: scale)]}, "must give an optimiser"),
        ({"objective": lambda: ["rmse", Driven(torch.optim.LBFGS, lambda scale: scale)]}, "without a closure"),
        ({"objective": lambda: ["rmse", Driven(sgd, lambda scale: scale * torch.ones(2))]}, "must give one number"),
        ({"objective": lambda: ["rmse", Driven(sgd, lambda scale: scale.detach())]}, "with a gradient"),
        ({"metrics": lambda: ["rmse", Vector()]}, "must compute one number"),
        ({"callbacks": pl.Callback}, "must be a list of Lightning callbacks"),
        ({"callbacks": lambda: [3]}, "must be a list of Lightning callbacks"),
        ({"loggers": lambda: "tensorboard"}, "must be a list of loggers"),
        ({"transform": lambda: 3}, "must be a function"),
        ({"monitor": lambda: 3}, "must be the name"),
        ({"model": lambda: model(Decoder(top=3.0))}, r"images in \[0, 1\]"),
        ({"model": lambda: model(prior=BadPrior(lambda count: torch.zeros(count, 3)))}, r"latents \[2, 8\], got \[2"),
        ({"model": lambda: model(prior=BadPrior(lambda _: None))}, "got NoneType"),
        ({"model": lambda: model(prior=BadPrior(fail))}, "gives no samples: never"),
    ],
)
def test_parts_that_cannot_work_are_refused(given: dict[str, Callable[[], Any]], words: str, tmp_path: Path) -> None:
    ((name, make),) = given.items()
    with pytest.raises(InvalidOptionError, match=words):
        SMALL.train(tmp_path, **{name: make()})


def test_a_damaged_checkpoint_leaves_the_configuration(tmp_path: Path) -> None:
    SMALL.train(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    (tmp_path / "checkpoints" / "last.safetensors").write_bytes(b"cut")
    with pytest.raises(TransferVAEError, match="last"):
        Small(faces=12, epochs=9).train(tmp_path, resume=True)
    assert (tmp_path / "config.json").read_bytes() == before
