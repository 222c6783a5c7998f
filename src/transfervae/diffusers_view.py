"""A model in the shape of diffusers' `AutoencoderKL`, for code that trains or runs latent diffusion with one."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from transfervae.errors import ShapeError
from transfervae.posteriors import Posterior
from transfervae.shapes import Images, Latents, PerItem


@runtime_checkable
class Autoencoder(Protocol):
    """What the view needs of a model: `TransferVAE` has it."""

    latent_shape: tuple[int, ...]
    image_size: tuple[int, int]
    scaling: nn.Module | None

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    def encode(self, images: Tensor, *, scaled: bool = False) -> Posterior:
        """Map images in [0, 1] to posteriors."""

    def decode(self, latent: Latents, *, scaled: bool = False) -> Images:
        """Map latents to images in [0, 1]."""


@dataclass(frozen=True)
class ViewConfig(Mapping[str, Any]):
    """What diffusers' scripts and pipelines ask an autoencoder about, as attributes or by key.

    Attributes:
        latent_channels: Channels of a latent.
        block_out_channels: Only its length has a meaning: images are 2^(length - 1) times as large as latents, where
            that is a power of two, or nearly so where it is not.
        sample_size: Side of the images; (height, width) if they are not square.
        scaling_factor: 1: the view's latents need no more scaling.
        shift_factor: 0, as well.
        in_channels: Of the images.
        out_channels: Of the images.
        force_upcast: False: what needs float32 is computed so without being asked.
    """

    latent_channels: int
    block_out_channels: tuple[int, ...]
    sample_size: int | tuple[int, int]
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    in_channels: int = 3
    out_channels: int = 3
    force_upcast: bool = False

    def __getitem__(self, key: str) -> Any:
        return asdict(self)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(asdict(self))

    def __len__(self) -> int:
        return len(asdict(self))


@dataclass(frozen=True, eq=False)
class LatentDistribution:
    """The posterior of a batch, with the members of diffusers' distribution.

    Attributes:
        posterior: In the view's latent space.
    """

    posterior: Posterior

    @property
    def mean(self) -> Latents:
        """Mean, `[b, c, h, w]`."""
        return self.posterior.mean

    @property
    def var(self) -> Latents:
        """Variance, `[b, c, h, w]`; 0 for a deterministic head."""
        return self.posterior.variance

    @property
    def std(self) -> Latents:
        """Standard deviation, `[b, c, h, w]`; 0 for a deterministic head."""
        return self.var.sqrt()

    @property
    def logvar(self) -> Latents:
        """Natural logarithm of the variance, `[b, c, h, w]`; -30 for a deterministic head."""
        return self.posterior.logvar

    def mode(self) -> Latents:
        """The most likely latent, `[b, c, h, w]`."""
        return self.posterior.mode()

    def sample(self, generator: torch.Generator | None = None) -> Latents:
        """Draw a latent `[b, c, h, w]`; the point itself, without the noise of training, for a deterministic head.

        Args:
            generator: Source of randomness, on the latents' device; the global one if None.
        """
        return self.posterior.without_noise().sample(generator=generator)

    def kl(self) -> PerItem:
        """KL to the standard normal, summed over latent dimensions, in nats, `[b]`; 0 for a deterministic head."""
        return self.posterior.kl()


class EncoderOutput(NamedTuple):
    """What `DiffusersView.encode` gives.

    Attributes:
        latent_dist: The latents' distribution.
    """

    latent_dist: LatentDistribution


class DecoderOutput(NamedTuple):
    """What `DiffusersView.decode` gives.

    Attributes:
        sample: Images `[b, 3, h, w]` in [-1, 1].
    """

    sample: Images


class DiffusersView(nn.Module):
    """A `TransferVAE` of latent maps with the interface of diffusers' `AutoencoderKL`: `vae.as_diffusers()`.

    Images are in [-1, 1], in and out. Latents are the scaled ones if the model has a scaling, else as the head gives
    them. Diffusion models want latents of mean 0 and variance 1, so call `vae.fit_scaling` before; either way
    `config.scaling_factor` is 1. The view shares everything with the model; the backbone stays frozen.

    Attributes:
        vae: The model.
        config: What scripts and pipelines ask about.
    """

    def __init__(self, vae: nn.Module) -> None:
        """View a model; users call `vae.as_diffusers()`.

        Args:
            vae: A `TransferVAE`.

        Raises:
            ShapeError: If its latents are vectors.
        """
        super().__init__()
        self.vae = vae
        latent_shape, image_size = self._autoencoder.latent_shape, self._autoencoder.image_size
        if len(latent_shape) != 3:
            raise ShapeError(
                f"diffusers needs latent maps (c, h, w), this model's latents are vectors {tuple(latent_shape)};"
                ' build one with head="spatial".'
            )
        channels, *grid = latent_shape
        doublings = round(math.log2(max(side / cells for side, cells in zip(image_size, grid, strict=True))))
        self.config = ViewConfig(
            latent_channels=channels,
            block_out_channels=(channels,) * (max(doublings, 0) + 1),
            sample_size=image_size[0] if image_size[0] == image_size[1] else image_size,
        )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._autoencoder.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return next(self.parameters()).dtype

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[LatentDistribution]:
        """Map images to their latents' distribution.

        Args:
            x: RGB in [-1, 1], `[b, 3, h, w]`, of the model's image size.
            return_dict: Whether to return a named tuple or a plain one, of one member either way.

        Raises:
            InvalidImageError: If the tensor is no batch of RGB images in [-1, 1]; the message speaks of them as the
                model gets them, in [0, 1].
            ImageSizeError: If the images have another size than the model's.
        """
        distribution = LatentDistribution(self._autoencoder.encode((x + 1) / 2, scaled=self._is_scaled))
        return EncoderOutput(distribution) if return_dict else (distribution,)

    def decode(
        self,
        z: Latents,
        return_dict: bool = True,
        generator: torch.Generator | None = None,  # noqa: ARG002 - pipelines pass it
    ) -> DecoderOutput | tuple[Images]:
        """Map latents to images.

        Args:
            z: `[b, c, h, w]`.
            return_dict: Whether to return a named tuple or a plain one, of one member either way.
            generator: Not used: decoding is deterministic.

        Returns:
            Images `[b, 3, h, w]` in [-1, 1].

        Raises:
            ShapeError: If the latents have another shape than the model's.
        """
        images = 2 * self._autoencoder.decode(z, scaled=self._is_scaled) - 1
        return DecoderOutput(images) if return_dict else (images,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Images]:
        """Encode and decode images, with a draw from the posterior if `sample_posterior`, else with its mode."""
        distribution = self.encode(sample)[0]
        latents = distribution.sample(generator) if sample_posterior else distribution.mode()
        return self.decode(latents, return_dict=return_dict)

    def requires_grad_(self, requires_grad: bool = True) -> "DiffusersView":
        """Set whether head and decoder take gradients; the backbone never does."""
        self.vae.requires_grad_(requires_grad)
        return self

    @property
    def _autoencoder(self) -> Autoencoder:
        return cast(Autoencoder, self.vae)

    @property
    def _is_scaled(self) -> bool:
        return self._autoencoder.scaling is not None
