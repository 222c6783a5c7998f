"""The same model and training step in plain PyTorch, as one writes it first: float32, nothing cached."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from counting import counted, random_images, torch_device
from protocol import read_options, serve
from torch import Tensor, nn
from torchvision.models import vgg19

BETA = 1e-4


class Encoder(nn.Module):
    """A frozen network, and a linear layer to mean and log-variance."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, features: int, latent_dim: int) -> None:
        """Make an encoder.

        Args:
            network: Normalised images to features.
            features: Number of them, flattened.
            latent_dim: Length of the latent vector.
        """
        super().__init__()
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.head = nn.Linear(features, 2 * latent_dim)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def features(self, images: Tensor) -> Tensor:
        """`[b, 3, h, w]` in [0, 1] to the network's features."""
        with torch.no_grad():
            features: Tensor = self.network((images - self.mean) / self.std)
        return features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`[b, 3, h, w]` in [0, 1] to mean and log-variance `[b, d]`."""
        mean, logvar = self.head(self.features(images).flatten(1)).chunk(2, dim=1)
        return mean, logvar


class Decoder(nn.Sequential):
    """A linear layer to a small grid, then upsampling, convolution, normalisation and SiLU up to the image's size."""

    def __init__(self, latent_dim: int, image_size: int, width: int = 128) -> None:
        """Make a decoder.

        Args:
            latent_dim: Length of the latent vector.
            image_size: Side of the images.
            width: Channels of the smallest grid; they halve with each stage, down to 16.
        """
        side, channels = smallest_side(image_size), width
        layers: list[nn.Module] = [nn.Linear(latent_dim, width * side**2), nn.Unflatten(1, (width, side, side))]
        layers += [nn.GroupNorm(width // 8, width), nn.SiLU()]
        while side < image_size:
            after = max(16, channels // 2)
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, after, 3, padding=1)]
            layers += [nn.GroupNorm(after // 8, after), nn.SiLU()]
            side, channels = 2 * side, after
        super().__init__(*layers, nn.Conv2d(channels, 3, 3, padding=1), nn.Sigmoid())


def smallest_side(image_size: int) -> int:
    """Halve the side until it is 8 or less."""
    while image_size > 8:
        image_size //= 2
    return image_size


class Networks(NamedTuple):
    """What is trained, and the frozen network in it."""

    encoder: Encoder
    decoder: Decoder


def build(backbone: str, image_size: int, latent_dim: int) -> Networks:
    """Make the networks: torchvision's VGG19, or the last stage of `timm:NAME`; random weights."""
    network = make_network(backbone).eval()
    features = network(torch.zeros(1, 3, image_size, image_size)).numel()
    return Networks(Encoder(network, features, latent_dim), Decoder(latent_dim, image_size))


def make_network(backbone: str) -> nn.Module:
    """Images to features, with random weights."""
    if backbone == "vgg19":
        features: nn.Module = vgg19().features
        return features
    import timm

    name = backbone.removeprefix("timm:")
    return _Last(timm.create_model(name, features_only=True, out_indices=(-1,)))


def training_step(networks: Networks, optimizer: torch.optim.Optimizer, images: Tensor) -> Tensor:
    """Encode, draw, decode; root mean squared error and KL; one step of the optimiser."""
    mean, logvar = networks.encoder(images)
    latent = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    error: Tensor = F.mse_loss(networks.decoder(latent), images, reduction="none").mean(dim=(1, 2, 3)).sqrt().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
    loss: Tensor = error + BETA * kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def main() -> None:
    """Serve the stages."""
    options = read_options()
    device = torch.device(options["device"])
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    encoder, decoder = build(options["backbone"], options["image_size"], options["latent_dim"])
    networks = Networks(encoder.to(device), decoder.to(device))
    trainable = [*encoder.head.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(trainable, lr=1e-4)
    images = random_images(options["batch"], options["image_size"], device)
    latent = torch.randn(options["batch"], options["latent_dim"], device=device)

    def inference(run: Any) -> Any:
        return torch.no_grad()(run)

    runs = {
        "backbone": inference(lambda: encoder.features(images)),
        "encode": inference(lambda: encoder(images)),
        "decode": inference(lambda: decoder(latent)),
        "reconstruct": inference(lambda: decoder(encoder(images)[0])),
        "train (live)": lambda: training_step(networks, optimizer, images),
    }
    wanted = options["stages"] or list(runs)
    stages = {name: counted(run, len(images)) for name, run in runs.items() if name in wanted}
    serve(stages, torch_device(device), trainable=sum(parameter.numel() for parameter in trainable))


class _Last(nn.Module):
    """timm gives a list of maps; the last one alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        last: Tensor = self.network(images)[-1]
        return last


if __name__ == "__main__":
    main()
