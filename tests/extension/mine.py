"""What a user would write: a part of each kind, none of them known to the library, and a run of them all.

As a program it trains in the folder that it is given; `--resume` goes on.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import Metric

import transfervae as tv
from transfervae.training import TrainResult

EPOCHS = 4
ENGINE: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "precision": "32-true",
    "memory_format": "contiguous",
}


class TanhHead(nn.Module):
    """A Gaussian head whose means lie in (-reach, reach)."""

    def __init__(self, features: int, latent_dim: int, reach: float) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.reach = reach
        self.moments = nn.Linear(features, 2 * latent_dim)

    def latent_shape_for(self, feature_shape: Sequence[int]) -> tuple[int, ...]:
        if math.prod(feature_shape) != self.moments.in_features:
            raise tv.errors.ShapeError(f"made for {self.moments.in_features} features")
        return (self.latent_dim,)

    def forward(self, features: Tensor) -> tv.DiagonalGaussian:
        mean, logvar = self.moments(nn.functional.normalize(features.flatten(1))).chunk(2, 1)
        return tv.DiagonalGaussian(self.reach * mean.tanh(), logvar.tanh())


class PixelDecoder(nn.Module):
    """One linear layer to all pixels."""

    def __init__(self, latent_shape: tuple[int], image_size: tuple[int, int]) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        self.image_size = image_size
        self.pixels = nn.Linear(latent_shape[0], 3 * math.prod(image_size))

    def forward(self, latent: Tensor) -> Tensor:
        pixels: Tensor = self.pixels(latent)
        return pixels.float().sigmoid().view(-1, 3, *self.image_size)


class Critic(tv.Term):
    """An adversarial term: a small network that tells images from reconstructions, with an optimiser of its own."""

    name = "critic"

    def __init__(self) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.LeakyReLU(0.2), nn.Flatten(), nn.LazyLinear(1))
        self.judge(torch.zeros(1, 3, 32, 32))

    def forward(self, output: Any, images: Tensor) -> Float[Tensor, " b"]:  # noqa: ARG002 - every term has them
        verdict: Tensor = self.judge(output.reconstruction)
        return -verdict.squeeze(1)

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def own_loss(self, output: Any, images: Tensor) -> Tensor:
        real, drawn = self.judge(images), self.judge(output.reconstruction)
        loss: Tensor = (1 - real).relu().mean() + (1 + drawn).relu().mean()
        return loss


class Sharpness(tv.Term):
    """A term with a parameter that the model's optimiser trains: how much of the gradient's error counts."""

    name = "sharpness"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, output: Any, images: Tensor) -> Float[Tensor, " b"]:
        error = (output.reconstruction - images).diff(dim=-1).abs().flatten(1).mean(dim=1)
        value: Tensor = error * (-self.scale).exp() + self.scale
        return value


class LargestError(Metric):
    """Largest absolute error of any pixel."""

    higher_is_better = False
    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("largest", torch.zeros(()), dist_reduce_fx="max")

    def update(self, output: tv.VAEOutput, images: Tensor) -> None:
        self.largest = torch.maximum(self.largest, (output.reconstruction - images).abs().max())

    def compute(self) -> Tensor:
        return self.largest


class BoxPrior(nn.Module):
    """A uniform distribution over a box, fitted to the latents' range."""

    is_scaled = False
    low: Tensor
    high: Tensor

    def __init__(self, latent_shape: tuple[int]) -> None:
        super().__init__()
        self.register_buffer("low", -torch.ones(latent_shape))
        self.register_buffer("high", torch.ones(latent_shape))

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        draws = torch.rand(count, *self.low.shape, generator=generator, device=self.low.device)
        return self.low + draws * (self.high - self.low)

    def log_prob(self, latents: Tensor) -> Tensor:
        inside = ((latents >= self.low) & (latents <= self.high)).flatten(1).all(dim=1)
        return torch.where(inside, -(self.high - self.low).log().sum(), -torch.inf)

    def fit(self, latents: Tensor) -> None:
        self.low.copy_(latents.amin(dim=0))
        self.high.copy_(latents.amax(dim=0))


class Stripes(Dataset[dict[str, Any]]):
    """Drawn stripes with labels, as dictionaries of floating point images in another size than the model's."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> dict[str, Any]:
        wave = torch.linspace(0, 1 + index % 7, 40).mul(math.tau).cos()
        image = (0.5 + 0.4 * wave).expand(3, 40, 40) * torch.tensor([1.0, 0.5, index / 60]).view(3, 1, 1)
        return {"image": image, "label": index % 7}


def make_parts() -> dict[str, nn.Module]:
    """The model's parts, with the same weights in every call."""
    torch.manual_seed(0)
    backbone = tv.create_backbone("timm:test_resnet", weights=None)
    features = math.prod(backbone.feature_shape(32))
    return {
        "backbone": backbone,
        "head": TanhHead(features, 6, reach=3.0),
        "decoder": PixelDecoder((6,), (32, 32)),
        "prior": BoxPrior((6,)),
    }


def train(out: Path, *, resume: bool = False, epochs: int = EPOCHS) -> TrainResult:
    """Train all parts together."""
    parts = make_parts()
    vae = tv.TransferVAE(parts["backbone"], parts["head"], parts["decoder"], prior=parts["prior"])  # type: ignore[arg-type]
    objective = tv.Objective(
        "rmse",
        tv.Spec("kl", weight=1e-4, schedule="linear", schedule_epochs=2),
        tv.WeightedTerm(Sharpness(), weight=0.1),
        tv.WeightedTerm(Critic(), weight=1e-3, start_epoch=1),
    )
    return tv.train(
        vae,
        Stripes(),
        out=out,
        objective=objective,
        metrics=("rmse", LargestError()),
        monitor="LargestError",
        epochs=epochs,
        dataset={"batch_size": 8, "val": 0.2, "workers": 0},
        optimizer={"name": "adamw", "ema": 0.9, "accumulate": 2, "clip": 1.0, "warmup_epochs": 1.0},
        engine=ENGINE,
        resume=resume,
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]), resume="--resume" in sys.argv)
