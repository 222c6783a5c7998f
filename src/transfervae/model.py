"""The model: a frozen backbone, a head and a decoder."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from transfervae.backbones import FrozenBackbone
from transfervae.diffusers_view import DiffusersView
from transfervae.errors import CheckpointError, ImageSizeError, InvalidOptionError, ShapeError, UnknownNameError
from transfervae.interpolation import INTERPOLATIONS
from transfervae.posteriors import Posterior
from transfervae.priors import PRIORS, Prior
from transfervae.saving import load_model, save_model
from transfervae.scaling import LatentScaling, LatentStatistics, check_scaling_names
from transfervae.shapes import Features, Images, Latents, check_image_tensor, check_positive

FROZEN_PREFIX = "backbone."
DEFAULT_PRIOR = "standard_normal"


@runtime_checkable
class Head(Protocol):
    """What `TransferVAE` needs of a head, beside being a module."""

    def latent_shape_for(self, feature_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a latent for features of one shape (c, h, w); raises `ShapeError` if it cannot take them."""

    def __call__(self, features: Features) -> Posterior:
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
        posterior: The latents' distribution, or the points of a deterministic head.
        latent: A draw from the posterior in training, its mode in evaluation.
    """

    reconstruction: Images
    posterior: Posterior
    latent: Latents


class TransferVAE(nn.Module):
    """A variational autoencoder (Kingma & Welling 2014) whose encoder is a frozen pretrained network and a small head.

    Attributes:
        backbone: Images to features; never trained.
        head: Features to the posterior.
        decoder: Latents to images.
        prior: What new latents are drawn from.
        feature_shape: (c, h', w') of the features of one image.
        latent_shape: Shape of one latent.
        image_size: (height, width) of its images.
        scaling: To latents of mean 0 and variance 1 and back, if `fit_scaling` has been called, else None.
    """

    scaling: LatentScaling | None

    def __init__(
        self,
        backbone: FrozenBackbone,
        head: nn.Module,
        decoder: nn.Module,
        *,
        prior: nn.Module | None = None,
        scaling: LatentScaling | None = None,
    ) -> None:
        """Compose a model of parts that fit.

        Args:
            backbone: From `create_backbone`.
            head: From features to a posterior, such as `GaussianHead`; has `latent_shape_for`.
            decoder: From latents to images, such as `resize_decoder` builds; has `latent_shape` and `image_size`.
            prior: What new latents are drawn from, such as `StandardNormal`; the one that suits the head if None.
            scaling: For latents of mean 0 and variance 1; `fit_scaling` makes it from images.

        Raises:
            ShapeError: If the parts do not fit each other.
            ImageSizeError: If the backbone cannot take the decoder's image size.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.decoder = decoder
        self.image_size = cast(ImageDecoder, decoder).image_size
        self.scaling = scaling
        self.feature_shape = backbone.feature_shape(self.image_size)
        self.latent_shape = self._fitting_latent_shape()
        self.prior = PRIORS.build(getattr(head, "prior", DEFAULT_PRIOR), self.latent_shape) if prior is None else prior

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.backbone.mean.device

    def forward(self, images: Tensor, *, generator: torch.Generator | None = None) -> VAEOutput:
        """Encode and decode: with a draw from the posterior in training, with its mode in evaluation.

        Args:
            images: RGB in [0, 1], `[b, 3, h, w]`, of `image_size`.
            generator: Source of randomness for the draw; the global one if None. Leave it out under
                `torch.utils.checkpoint`, which restores only the global one before it computes a part again.

        Returns:
            Reconstruction, posterior and latent.

        Raises:
            InvalidImageError: If the tensor is no batch of RGB images in [0, 1].
            ImageSizeError: If the images have another size than the model's.
        """
        return self._decode_draw(self.encode(images), generator)

    def forward_from_features(self, features: Features, *, generator: torch.Generator | None = None) -> VAEOutput:
        """Do what `forward` does, from features that the backbone has given before; the backbone is not run.

        Args:
            features: `[b, c, h', w']`, floating point, as `backbone(images)` gives them.
            generator: Source of randomness for the draw; the global one if None.

        Returns:
            Reconstruction, posterior and latent.

        Raises:
            ShapeError: If the features are not of the shape that the model's backbone gives.
        """
        return self._decode_draw(self.encode_features(features), generator)

    def encode_features(self, features: Features, *, scaled: bool = False) -> Posterior:
        """Map features that the backbone has given before to the posterior of the latents.

        Args:
            features: `[b, c, h', w']`, floating point, as `backbone(images)` gives them.
            scaled: Give the posterior of latents brought to mean 0 and variance 1, as in `encode`.

        Raises:
            ShapeError: If the features are not of the shape that the model's backbone gives.
            InvalidOptionError: If `scaled` is asked for and the model has no scaling.
        """
        if tuple(features.shape[1:]) != self.feature_shape:
            expected = ", ".join(map(str, self.feature_shape))
            raise ShapeError(f"Features must be [b, {expected}], got {list(features.shape)}.")
        scaling = self._fitted_scaling() if scaled else None
        posterior: Posterior = self.head(features)
        return posterior if scaling is None else posterior.normalised(scaling.mean, scaling.std)

    def encode(self, images: Tensor, *, scaled: bool = False) -> Posterior:
        """Map images to the posterior of their latents.

        Args:
            images: RGB in [0, 1], `[b, 3, h, w]`, of `image_size`.
            scaled: Give the posterior of latents brought to mean 0 and variance 1, as `decode(..., scaled=True)`
                takes them.

        Raises:
            InvalidOptionError: If `scaled` is asked for and the model has no scaling.
            InvalidImageError: If the tensor is no batch of RGB images in [0, 1].
            ImageSizeError: If the images have another size than the model's.
        """
        # The backbone checks images; here only what it could take and the model cannot.
        if not isinstance(images, Tensor) or tuple(images.shape[-2:]) != self.image_size:
            height, width = check_image_tensor(images).shape[-2:]
            raise ImageSizeError(
                f"This model was built for {self.image_size[0]}x{self.image_size[1]} images (height x width),"
                f" got {height}x{width}; resize them, or build a model with image_size=({height}, {width})."
            )
        if scaled:
            self._fitted_scaling()  # refuse before the backbone has run
        return self.encode_features(self.backbone(images), scaled=scaled)

    def decode(self, latent: Latents, *, scaled: bool = False) -> Images:
        """Map latents `[b, *latent_shape]` to images `[b, 3, h, w]` in [0, 1].

        Args:
            latent: `[b, *latent_shape]`.
            scaled: The latents are of mean 0 and variance 1, as `encode(..., scaled=True)` gives them.

        Raises:
            ShapeError: If the latents have another shape, or are no tensor.
            InvalidOptionError: If they are said to be scaled and the model has no scaling.
        """
        if not isinstance(latent, Tensor):
            raise ShapeError(f"Latents must be a tensor [b, {', '.join(map(str, self.latent_shape))}], got {latent!r}.")
        if scaled:
            latent = self._fitted_scaling().restore(latent)
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
        """Decode draws from the model's prior.

        For most heads that is the standard normal. Nothing draws a deterministic head's latents towards one: its prior
        is standard normal in scaled space, which `fit_scaling` gives the mean and variance of the images' latents.

        Args:
            count: Number of images, at least 1.
            generator: Source of randomness, on the model's device; the global one if None.

        Returns:
            Images `[count, 3, h, w]` in [0, 1].

        Raises:
            InvalidOptionError: If `count` is below 1.
        """
        check_positive(count=count)
        prior = cast(Prior, self.prior)
        draws = prior.sample(count, generator=generator)
        return self.decode(draws, scaled=prior.is_scaled and self.scaling is not None)

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

    @torch.no_grad()
    def fit_scaling(
        self, batches: Iterable[Tensor | Sequence[Tensor]], *, per: str = "channel", convention: str = "rae"
    ) -> None:
        """Set `scaling` from the latents of a data set, so that scaled ones have mean 0 and variance 1 over it.

        For Gaussian posteriors these are the exact moments of all draws together: the variance is that of the means
        plus the mean of the variances, with no randomness in it. For deterministic heads they are those of the points,
        without the noise of training. One pass, in float64, memory for one batch. Several processes each fit what they
        are given; `LatentStatistics.synchronise` joins them.

        Args:
            batches: Images, `[b, 3, h, w]` in [0, 1], of `image_size`, on any device: a loader over training images.
                Of a batch with more in it, such as labels, the first entry is taken.
            per: "channel" (all positions of a map's channel share a mean and a variance) or "position".
            convention: "rae" or "diffusers", as in `LatentScaling.from_statistics`.

        Raises:
            UnknownNameError: For another `per` or `convention`.
            InvalidOptionError: If there are no images, or their latents are not finite.
            InvalidImageError: If a tensor is no batch of RGB images in [0, 1].
            ImageSizeError: If the images have another size than the model's.
        """
        check_scaling_names(per, convention)
        statistics = LatentStatistics()
        for batch in batches:
            images = batch if isinstance(batch, Tensor) else batch[0]
            posterior = self.encode(images.to(self.device))
            statistics.update(posterior.mean, posterior.variance)
        self.scaling = LatentScaling.from_statistics(statistics, per=per, convention=convention).to(self.device)

    def as_diffusers(self) -> DiffusersView:
        """View the model as diffusers' `AutoencoderKL`, for code that trains or runs latent diffusion with one.

        Raises:
            ShapeError: If its latents are vectors.
        """
        return DiffusersView(self)

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
        """Parameters and buffers of head, decoder, prior and scaling by name: what a checkpoint should hold."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(FROZEN_PREFIX)}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trainable_state` gave, all or nothing.

        Raises:
            CheckpointError: If names, shapes or kinds of numbers do not fit, or a value is not finite.
        """
        own = self.trainable_state()
        misfits = sorted(own.keys() ^ state.keys())
        misfits += [name for name in own if name in state and own[name].shape != state[name].shape]
        if misfits:
            raise CheckpointError(
                f"The weights do not fit the model; {len(misfits)} differ, first {', '.join(misfits[:3])}."
            )
        for name, value in own.items():
            cast = state[name].to(value.dtype) if state[name].is_floating_point() else state[name]
            if state[name].is_floating_point() != value.is_floating_point() or not cast.isfinite().all():
                kind = str(state[name].dtype).removeprefix("torch.")
                raise CheckpointError(f"The weights do not fit the model: {name} is {kind}, or not finite.")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the model to a folder: `model.safetensors` (head, decoder, prior and scaling) and `config.json`.

        The frozen network is named and fingerprinted, not stored. A part of your own is named by its class, and has to
        be given again when the model is read.

        Args:
            folder: Made if missing; a model in it is replaced.

        Raises:
            CheckpointError: If a part of your own holds a state that cannot be stored, or weights are NaN.
            FileWriteError: If the files cannot be written.
        """
        save_model(self, folder)

    @staticmethod
    def from_pretrained(
        folder: str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        backbone: FrozenBackbone | None = None,
        head: nn.Module | None = None,
        decoder: nn.Module | None = None,
        prior: nn.Module | None = None,
    ) -> "TransferVAE":
        """Read a model that `save_pretrained` wrote, in evaluation mode, on the CPU.

        Args:
            folder: The model's folder.
            weights: Where the backbone's weights are, if no longer where they were: "default" or a path.
            backbone: A backbone that is in memory already, instead of creating it.
            head: A head of your own, whose saved weights are loaded into it.
            decoder: A decoder of your own, likewise.
            prior: A prior of your own, likewise.

        Returns:
            The model.

        Raises:
            CheckpointError: If the folder is missing, damaged or foreign, or a part of your own is not given.
            FingerprintMismatchError: If the backbone is not the one that the model was trained on.
            WeightsUnavailableError: If the backbone's weights are not to be had.
        """
        return load_model(
            TransferVAE, folder, weights=weights, backbone=backbone, head=head, decoder=decoder, prior=prior
        )

    def _decode_draw(self, posterior: Posterior, generator: torch.Generator | None) -> VAEOutput:
        latent = posterior.sample(generator=generator) if self.training else posterior.mode()
        return VAEOutput(self.decode(latent), posterior, latent)

    def _fitting_latent_shape(self) -> tuple[int, ...]:
        """The latents' shape, on which head, decoder and scaling must agree."""
        features = self.feature_shape
        try:
            latent_shape = tuple(cast(Head, self.head).latent_shape_for(features))
        except ShapeError as error:
            raise ShapeError(
                f"{error} The backbone gives {list(features)} for {self.image_size[0]}x{self.image_size[1]} images."
            ) from error
        taken = tuple(cast(ImageDecoder, self.decoder).latent_shape)
        if latent_shape != taken:
            raise ShapeError(f"The head gives latents {latent_shape}, the decoder takes {taken}.")
        if self.scaling is not None:
            self.scaling.check_fit(latent_shape)
        return latent_shape

    def _fitted_scaling(self) -> LatentScaling:
        if self.scaling is None:
            raise InvalidOptionError(
                "This model has no latent scaling; call fit_scaling(batches) with training images, or leave scaled out."
            )
        return self.scaling


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, then each module's own mode again: statistics of batch normalisation stay as they are."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, is_training in modes.items():
            part.training = is_training
