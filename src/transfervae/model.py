"""The model: a frozen backbone, a head and a decoder."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transfervae.backbones import FrozenBackbone, create_backbone
from transfervae.checkpoint import read_model, write_model
from transfervae.decoders import DECODERS
from transfervae.errors import (
    CheckpointError,
    FingerprintMismatchError,
    ImageSizeError,
    InvalidOptionError,
    ShapeError,
    TransferVAEError,
    UnknownNameError,
    WeightsUnavailableError,
)
from transfervae.gaussian import DiagonalGaussian
from transfervae.heads import HEADS, GaussianHead
from transfervae.interpolation import INTERPOLATIONS
from transfervae.shapes import Features, Images, Latents, check_image_tensor, check_positive, parse_image_size

FROZEN_PREFIX = "backbone."

Part = TypeVar("Part")


@runtime_checkable
class Head(Protocol):
    """What `TransferVAE` needs of a head, beside being a module."""

    latent_shape: tuple[int, ...]

    def __call__(self, features: Features) -> DiagonalGaussian:
        """Map features to a posterior."""


@runtime_checkable
class ImageDecoder(Protocol):
    """What `TransferVAE` needs of a decoder, beside being a module."""

    latent_shape: tuple[int, ...]
    image_size: tuple[int, int]

    def __call__(self, latent: Latents) -> Images:
        """Map latents to images in [0, 1]."""


class VAEOutput(NamedTuple):
    """What a forward pass gives.

    Attributes:
        reconstruction: Images `[b, 3, h, w]` in [0, 1], decoded from `latent`.
        posterior: The latents' distribution.
        latent: A draw from the posterior in training, its mode in evaluation.
    """

    reconstruction: Images
    posterior: DiagonalGaussian
    latent: Latents


class TransferVAE(nn.Module):
    """A variational autoencoder (Kingma & Welling 2014) whose encoder is a frozen pretrained network and a small head.

    Attributes:
        backbone: Images to features; never trained.
        head: Features to the posterior.
        decoder: Latents to images.
        latent_shape: Shape of one latent.
        image_size: (height, width) of its images.
    """

    def __init__(self, backbone: FrozenBackbone, head: nn.Module, decoder: nn.Module) -> None:
        """Compose a model of parts that fit.

        Args:
            backbone: From `create_backbone`.
            head: From features to a posterior, such as `GaussianHead`; has `latent_shape`.
            decoder: From latents to images, such as `resize_decoder` builds; has `latent_shape` and `image_size`.

        Raises:
            ShapeError: If the parts do not fit each other.
            ImageSizeError: If the backbone cannot take the decoder's image size.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.decoder = decoder
        self.image_size = cast(ImageDecoder, decoder).image_size
        self.latent_shape = cast(Head, head).latent_shape
        self._check_fit()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.backbone.mean.device

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> VAEOutput:
        """Encode and decode: with a draw from the posterior in training, with its mode in evaluation.

        Args:
            images: RGB in [0, 1], `[b, 3, h, w]`, of `image_size`.
            generator: Source of randomness for the draw; the global one if None.

        Returns:
            Reconstruction, posterior and latent.

        Raises:
            InvalidImageError: If the tensor is no batch of RGB images in [0, 1].
            ImageSizeError: If the images have another size than the model's.
        """
        posterior = self.encode(images)
        latent = posterior.sample(generator=generator) if self.training else posterior.mode()
        return VAEOutput(self.decode(latent), posterior, latent)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Map images to the posterior of their latents.

        Args:
            images: RGB in [0, 1], `[b, 3, h, w]`, of `image_size`.

        Raises:
            InvalidImageError: If the tensor is no batch of RGB images in [0, 1].
            ImageSizeError: If the images have another size than the model's.
        """
        check_image_tensor(images)
        height, width = images.shape[-2:]
        if (height, width) != self.image_size:
            raise ImageSizeError(
                f"This model was built for {self.image_size[0]}x{self.image_size[1]} images (height x width),"
                f" got {height}x{width}; resize them, or build a model with image_size=({height}, {width})."
            )
        posterior: DiagonalGaussian = self.head(self.backbone(images))
        return posterior

    def decode(self, latent: Latents) -> Images:
        """Map latents `[b, *latent_shape]` to images `[b, 3, h, w]` in [0, 1].

        Raises:
            ShapeError: If the latents have another shape.
        """
        images: Tensor = self.decoder(latent)
        return images

    def reconstruct(self, images: Tensor) -> Images:
        """Decode the posterior's mode: the same images give the same answer, `[b, 3, h, w]` in [0, 1].

        Raises:
            InvalidImageError: If the tensor is no batch of RGB images in [0, 1].
            ImageSizeError: If the images have another size than the model's.
        """
        return self.decode(self.encode(images).mode())

    def sample(self, count: int = 1, *, generator: torch.Generator | None = None) -> Images:
        """Decode draws from the prior, the standard normal.

        Args:
            count: Number of images, at least 1.
            generator: Source of randomness, on the model's device; the global one if None.

        Returns:
            Images `[count, 3, h, w]` in [0, 1].

        Raises:
            InvalidOptionError: If `count` is below 1.
        """
        check_positive(count=count)
        return self.decode(torch.randn(count, *self.latent_shape, generator=generator, device=self.device))

    def interpolate(
        self, start: Tensor, end: Tensor, *, steps: int = 8, method: str = "spherical"
    ) -> Float[Tensor, "b steps 3 h w"]:
        """Decode a path between the latents of two batches of images.

        Args:
            start: Images at the path's start, `[b, 3, h, w]` in [0, 1].
            end: Images at its end, as many.
            steps: Images along each path, both ends included, at least 2.
            method: "spherical" (Shoemake 1985) or "linear".

        Returns:
            `[b, steps, 3, h, w]` in [0, 1].

        Raises:
            UnknownNameError: For another method.
            InvalidOptionError: If `steps` is below 2.
            ShapeError: If the two batches differ in number.
            InvalidImageError: If a tensor is no batch of RGB images in [0, 1].
            ImageSizeError: If the images have another size than the model's.
        """
        if method not in INTERPOLATIONS:
            raise UnknownNameError("interpolation", method, INTERPOLATIONS)
        check_positive(steps=steps)
        if steps < 2:
            raise InvalidOptionError(f"steps must be at least 2, got {steps}.")
        if len(start) != len(end):
            raise ShapeError(f"start and end must hold as many images, got {len(start)} and {len(end)}.")
        first, last = self.encode(start).mode(), self.encode(end).mode()
        path = INTERPOLATIONS[method](first, last, torch.linspace(0, 1, steps, device=first.device, dtype=first.dtype))
        return self.decode(path.flatten(0, 1)).view(len(start), steps, 3, *self.image_size)

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of head and decoder: what an optimiser should get."""
        yield from self.head.parameters()
        yield from self.decoder.parameters()

    def requires_grad_(self, requires_grad: bool = True) -> "TransferVAE":
        """Set whether head and decoder take gradients; the backbone never does."""
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def trainable_state(self) -> dict[str, Tensor]:
        """Parameters and buffers of head and decoder by name: what a checkpoint should hold."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(FROZEN_PREFIX)}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trainable_state` gave, all or nothing.

        Raises:
            CheckpointError: If names or shapes do not fit.
        """
        own = self.trainable_state()
        misfits = sorted(own.keys() ^ state.keys())
        misfits += [name for name in own if name in state and own[name].shape != state[name].shape]
        if misfits:
            raise CheckpointError(
                f"The weights do not fit the model; {len(misfits)} differ, first {', '.join(misfits[:3])}."
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to a folder: `model.safetensors` (head and decoder) and `config.json`.

        The frozen network is named and fingerprinted, not stored.

        Args:
            folder: Made if missing; a model in it is replaced.

        Raises:
            CheckpointError: If a part of one's own has no `config` and so cannot be built again.
            FileWriteError: If the files cannot be written.
        """
        config = {
            "backbone": self.backbone.config,
            "head": _config_of(self.head),
            "decoder": _config_of(self.decoder),
        }
        write_model(Path(folder), config, self.trainable_state())

    @staticmethod
    def from_pretrained(
        folder: str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        backbone: FrozenBackbone | None = None,
    ) -> "TransferVAE":
        """Read a model that `save_pretrained` wrote, in evaluation mode, on the CPU.

        Args:
            folder: The model's folder.
            weights: Where the backbone's weights are, if no longer where they were: "default" or a path.
            backbone: A backbone that is in memory already, instead of creating it.

        Returns:
            The model.

        Raises:
            CheckpointError: If the folder is missing, damaged or foreign.
            FingerprintMismatchError: If the backbone is not the one that the model was trained on.
            WeightsUnavailableError: If the backbone's weights are not to be had.
        """
        path = Path(folder)
        config, tensors = read_model(path)
        with _refusing(path):
            head = _build(HEADS, config["head"])
            decoder = _build(DECODERS, config["decoder"])
            recipe = {key: config["backbone"][key] for key in ("name", "node", "weights", "fingerprint")}
            name, node = str(recipe["name"]), recipe["node"]
        frozen = backbone or _find_backbone(name, node, recipe["weights"] if weights is None else weights)
        if frozen.fingerprint != recipe["fingerprint"]:
            raise FingerprintMismatchError(_mismatch_message(path, recipe, frozen))
        with _refusing(path):
            vae = TransferVAE(frozen, head, decoder)
        vae.load_trainable_state(tensors)
        return vae.eval()

    def _check_fit(self) -> None:
        latent_shape = tuple(cast(ImageDecoder, self.decoder).latent_shape)
        if tuple(self.latent_shape) != latent_shape:
            raise ShapeError(f"The head gives latents {self.latent_shape}, the decoder takes {latent_shape}.")
        features = self.backbone.feature_shape(self.image_size)
        wanted = getattr(self.head, "feature_shape", features)
        if tuple(wanted) != features:
            raise ShapeError(
                f"The head takes features {tuple(wanted)}, the backbone gives {features}"
                f" for {self.image_size[0]}x{self.image_size[1]} images."
            )


def build_vae(
    backbone: str | FrozenBackbone = "vgg19",
    *,
    image_size: int | Sequence[int] = 128,
    latent_dim: int = 128,
    node: str | int | None = None,
    weights: str | os.PathLike[str] | None = "default",
    decoder: str = "resize",
    width: int = 128,
) -> TransferVAE:
    """Build a model in one line.

    Args:
        backbone: A name for `create_backbone`, or a backbone.
        image_size: Height and width of the images, or one number, in pixels.
        latent_dim: Length of the latent vector.
        node: Where the backbone is read; its default if None. Not with a backbone that is already made.
        weights: The backbone's weights, as in `create_backbone`. Not used with a backbone that is already made.
        decoder: A name from `decoders.DECODERS`.
        width: Channels at the decoder's smallest grid, a multiple of 8.

    Returns:
        The model, in training mode.

    Raises:
        UnknownNameError: For a backbone, node or decoder that does not exist.
        ImageSizeError: If the backbone cannot take the size.
        InvalidOptionError: If a number is out of range.
        WeightsUnavailableError: If the weights are not to be had.
    """
    if decoder not in DECODERS:
        raise UnknownNameError("decoder", decoder, DECODERS)
    size = parse_image_size(image_size)
    if isinstance(backbone, str):
        backbone = create_backbone(backbone, node=node, weights=weights)
    elif not isinstance(backbone, FrozenBackbone):
        raise InvalidOptionError(f"backbone must be a name or a FrozenBackbone, got {type(backbone).__name__}.")
    elif node is not None:
        raise InvalidOptionError("node belongs to create_backbone; the backbone given is read at its own.")
    head = GaussianHead(backbone.feature_shape(size), latent_dim)
    return TransferVAE(backbone, head, DECODERS[decoder](head.latent_shape, size, width=width))


def _build(builders: Mapping[str, Any], config: Mapping[str, Any]) -> nn.Module:
    options = dict(config)
    kind = options.pop("kind")
    if kind not in builders:
        raise UnknownNameError("part", kind, builders)
    part: nn.Module = builders[kind](**options)
    return part


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn whatever a garbled configuration causes into one error that names it."""
    try:
        yield
    except (TransferVAEError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{str(folder / 'config.json')!r} describes no model: {error}") from error


def _find_backbone(name: str, node: str | int, weights: str | os.PathLike[str] | None) -> FrozenBackbone:
    is_file = weights not in (None, "default")
    if is_file and not Path(weights or "").is_file():
        raise WeightsUnavailableError(
            f"The weights of {name} are not in {str(weights)!r}; say where they are with weights=PATH (--weights PATH)."
        )
    return create_backbone(name, node=node, weights=weights)


def _config_of(part: nn.Module) -> object:
    if not hasattr(part, "config"):
        raise CheckpointError(
            f"{type(part).__name__} has no config to build it again from; save the tensors of"
            " vae.trainable_state() yourself."
        )
    return part.config


def _mismatch_message(path: Path, recipe: Mapping[str, Any], frozen: FrozenBackbone) -> str:
    return (
        f"The model in {str(path)!r} was trained on {recipe['name']} at {recipe['node']} with fingerprint"
        f" {recipe['fingerprint'][:12]}, but this backbone is {frozen.source.name} at {frozen.source.node}"
        f" with {frozen.fingerprint[:12]}: other weights, node or preprocessing. Give the right file with weights=PATH."
    )
