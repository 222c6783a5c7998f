"""The objective's terms, as pure functions with one value per item, and their weighted sum.

Every term says how it reduces over pixels, because that decides what a weight means: a mean over pixels beside a KL
summed over latents silently multiplies beta by the number of pixel values.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from transfervae.errors import InvalidImageError, InvalidOptionError, ShapeError, UnknownNameError
from transfervae.posteriors import Posterior
from transfervae.shapes import Images, PerItem, Scalar, at_least_float32, check_nonnegative

RMSE_EPSILON = 1e-8
"""Added inside the root of `rmse`: the gradient at zero error is 0 instead of NaN, the floor of the value is 1e-4."""

REFERENCE_LATENT = 128
"""Numbers in a latent up to which the default weights of the KL hold as they are."""

SSIM_WINDOW = 11
"""Width of the window of structural similarity, in pixels."""

SSIM_SPREAD = 1.5
"""Standard deviation of the window, in pixels."""

SSIM_LUMINANCE, SSIM_CONTRAST = 0.01**2, 0.03**2
"""Constants that keep the quotients of structural similarity stable, for values in [0, 1]."""

ReconstructionLoss = Callable[[Tensor, Tensor], PerItem]


@runtime_checkable
class Reconstructed(Protocol):
    """What `elbo` needs of a model's output: `VAEOutput` has it."""

    @property
    def reconstruction(self) -> Tensor:
        """Images, `[b, 3, h, w]`."""

    @property
    def posterior(self) -> Posterior:
        """The latents' posterior."""


class ElboTerms(NamedTuple):
    """The objective and its parts, each the mean over the batch.

    Attributes:
        total: reconstruction + beta * KL (with free bits applied); what is minimised.
        reconstruction: Reconstruction term, unweighted.
        kl: KL to the standard normal in nats, unweighted and without free bits.
    """

    total: Scalar
    reconstruction: Scalar
    kl: Scalar


def mse(reconstruction: Tensor, images: Tensor) -> PerItem:
    """Squared error, mean over channels and pixels.

    Args:
        reconstruction: `[b, c, h, w]` in [0, 1].
        images: `[b, c, h, w]` in [0, 1].

    Returns:
        One value per item, in [0, 1].

    Raises:
        ShapeError: If the shapes differ (nothing is broadcast).
    """
    return _difference(reconstruction, images).square().mean(dim=1)


def rmse(reconstruction: Tensor, images: Tensor) -> PerItem:
    """Root of the squared error's mean over channels and pixels: sqrt(mse + 1e-8).

    The constant inside the root keeps the gradient finite at zero error.

    Args:
        reconstruction: `[b, c, h, w]` in [0, 1].
        images: `[b, c, h, w]` in [0, 1].

    Returns:
        One value per item, in [1e-4, 1].

    Raises:
        ShapeError: If the shapes differ.
    """
    return (mse(reconstruction, images) + RMSE_EPSILON).sqrt()


def l1(reconstruction: Tensor, images: Tensor) -> PerItem:
    """Absolute error, mean over channels and pixels.

    Args:
        reconstruction: `[b, c, h, w]` in [0, 1].
        images: `[b, c, h, w]` in [0, 1].

    Returns:
        One value per item, in [0, 1].

    Raises:
        ShapeError: If the shapes differ.
    """
    return _difference(reconstruction, images).abs().mean(dim=1)


def charbonnier(reconstruction: Tensor, images: Tensor, *, epsilon: float = 1e-3) -> PerItem:
    """Absolute error, rounded off at zero: the mean over channels and pixels of sqrt(error^2 + epsilon^2).

    The penalty of Charbonnier et al. (1994); its gradient is continuous where that of `l1` jumps.

    Args:
        reconstruction: `[b, c, h, w]` in [0, 1].
        images: `[b, c, h, w]` in [0, 1].
        epsilon: Error up to which it is round, above 0.

    Returns:
        One value per item, in [epsilon, 1].

    Raises:
        ShapeError: If the shapes differ.
        InvalidOptionError: If `epsilon` is not above 0.
    """
    check_epsilon(epsilon)
    return (_difference(reconstruction, images).square() + epsilon**2).sqrt().mean(dim=1)


def check_epsilon(epsilon: float) -> None:
    """Check the constant of `charbonnier`.

    Raises:
        InvalidOptionError: If it is not above 0 and finite.
    """
    if not 0 < epsilon < math.inf:
        raise InvalidOptionError(f"epsilon must be above 0 and finite, got {epsilon}.")


def focal_frequency(reconstruction: Tensor, images: Tensor, *, alpha: float = 1.0) -> PerItem:
    """Squared error of the spectrum, in which frequencies count the more, the worse they are reconstructed.

    The mean over channels and frequencies of w |F(reconstruction) - F(images)|^2, with the orthonormal Fourier
    transform F and w = |F(reconstruction) - F(images)|^alpha divided by its largest value in each channel, without
    gradient (Jiang et al. 2021, equations 4 to 6).

    Args:
        reconstruction: `[b, c, h, w]` in [0, 1].
        images: `[b, c, h, w]` in [0, 1].
        alpha: How much more; 0 gives `mse`.

    Returns:
        One value per item, at least 0.

    Raises:
        ShapeError: If the shapes differ.
        InvalidOptionError: If `alpha` is negative.
    """
    check_nonnegative(alpha=alpha)
    difference = _difference(reconstruction, images).view(images.shape)
    energy = torch.view_as_real(torch.fft.fft2(difference, norm="ortho")).square().sum(dim=-1)
    weight = energy.detach() ** (alpha / 2)
    weight = weight / weight.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    return (weight * energy).flatten(1).mean(dim=1)


def structural_similarity(reconstruction: Tensor, images: Tensor) -> PerItem:
    """Structural similarity of two images for values in [0, 1] (Wang et al. 2004, equation 13), in [-1, 1].

    Windows are Gaussian, 11 pixels wide (in smaller images, as wide as they fit) with a standard deviation of 1.5.

    Args:
        reconstruction: `[b, 3, h, w]` in [0, 1].
        images: `[b, 3, h, w]` in [0, 1].
    """
    one, other = reconstruction.float(), images.float()
    rows, columns = (_windows(side, one.device) for side in one.shape[2:])
    values = torch.stack([one, other, one * one, other * other, one * other])
    mean, other_mean, square, other_square, product = rows @ values @ columns.T
    variances = square - mean.square() + other_square - other_mean.square()
    brightness = (2 * mean * other_mean + SSIM_LUMINANCE) / (mean.square() + other_mean.square() + SSIM_LUMINANCE)
    structure = (2 * (product - mean * other_mean) + SSIM_CONTRAST) / (variances.clamp(min=0) + SSIM_CONTRAST)
    similarity: Tensor = (brightness * structure).flatten(1).mean(dim=1)
    return similarity


def _windows(side: int, device: torch.device) -> Float[Tensor, "positions side"]:
    """Each row weighs the pixels in one window."""
    width = min(SSIM_WINDOW, side)
    weights = torch.exp(-0.5 * ((torch.arange(width, dtype=torch.float64) - (width - 1) / 2) / SSIM_SPREAD).square())
    windows = torch.zeros(side - width + 1, side, dtype=torch.float64)
    for first, row in enumerate(windows):
        row[first : first + width] = weights / weights.sum()
    return windows.float().to(device)


def gaussian_nll(reconstruction: Tensor, images: Tensor, *, sigma: float | None = None) -> PerItem:
    """Negative log-likelihood of the images under N(reconstruction, sigma^2), summed over channels and pixels, in nats.

    With D = c * h * w: D/2 log(2 pi) + D log sigma + sum of squared error / (2 sigma^2). Beside it, beta = 1 is the
    evidence lower bound.

    Without `sigma` it is calibrated (sigma-VAE, Rybkin et al. 2021): the value that maximises the likelihood of the
    batch, log sigma = softclip(0.5 log mse, -6), shared by its items; gradients flow through it. The sum over the
    batch then equals b * (D log RMSE + constant), so that it needs no weight. An item's value depends on its batch.

    Args:
        reconstruction: `[b, c, h, w]` in [0, 1].
        images: `[b, c, h, w]` in [0, 1].
        sigma: Standard deviation of a pixel value, above 0; None for the calibrated one.

    Returns:
        One value per item.

    Raises:
        ShapeError: If the shapes differ.
        InvalidOptionError: If `sigma` is not above 0.
    """
    squares = _difference(reconstruction, images).square()
    if sigma is None:
        log_sigma = _soft_clip(0.5 * (squares.mean() + 1e-20).log(), -6.0)
    elif sigma > 0:
        log_sigma = squares.new_tensor(math.log(sigma))
    else:
        raise InvalidOptionError(f"sigma must be above 0, got {sigma}.")
    scaled = squares.sum(dim=1) * (-2 * log_sigma).exp()
    return 0.5 * scaled + squares.shape[1] * (log_sigma + 0.5 * math.log(2 * math.pi))


def kl(posterior: Posterior) -> PerItem:
    """KL to the standard normal, summed over latent dimensions, in nats (Kingma & Welling 2014, appendix B).

    Args:
        posterior: Any trailing shape.

    Returns:
        One value per item, at least 0.
    """
    return posterior.kl()


def kl_and_penalty(posterior: Posterior, free_bits: float = 0.0) -> tuple[Scalar, Scalar]:
    """The batch's mean KL, and what of it counts above the free bits (Kingma et al. 2016).

    The second is the sum over dimensions of max(free_bits, batch mean of the dimension's KL): KL below that is not
    penalised.

    Args:
        posterior: Any trailing shape.
        free_bits: Threshold per latent dimension, in nats, at least 0.
    """
    dimensions = posterior.kl_per_dimension().mean(dim=0)
    divergence = dimensions.sum()
    return divergence, dimensions.clamp(min=free_bits).sum() if free_bits else divergence


class WeightedLoss(NamedTuple):
    """A reconstruction term and the weight of the KL that suits its scale.

    Attributes:
        loss: A function of (reconstruction, images) with a value per item.
        beta: Weight of the KL in nats, for latents of up to 128 numbers.
        is_likelihood: Whether the term is in nats too, so that the weight is the same for latents of any size.
    """

    loss: ReconstructionLoss
    beta: float
    is_likelihood: bool = False

    def beta_for(self, latent_size: int) -> float:
        """The weight for latents of some size; see `scaled_beta`."""
        return self.beta if self.is_likelihood else scaled_beta(self.beta, latent_size)


def scaled_beta(beta: float, latent_size: int) -> float:
    """The weight of the KL for latents of n numbers: beta * min(1, 128 / n).

    A reconstruction term that is a mean over pixels does not grow with the latent, and the KL is a sum over it. One
    weight for all sizes pulls every number of a large map to the prior, until draws are nearly all noise. Divided by
    the size, a nat per latent number costs the same in all (the normalised beta of Higgins et al. 2017).

    Args:
        beta: The weight for latents of up to 128 numbers.
        latent_size: Numbers in a latent, at least 1.
    """
    return beta * min(1.0, REFERENCE_LATENT / latent_size)


RECONSTRUCTIONS: Mapping[str, WeightedLoss] = MappingProxyType(
    {
        "rmse": WeightedLoss(rmse, 1e-4),
        "mse": WeightedLoss(mse, 2e-5),
        "l1": WeightedLoss(l1, 1e-4),
        "gaussian_nll": WeightedLoss(gaussian_nll, 1.0, is_likelihood=True),
    }
)
"""Reconstruction terms by name, each with its default beta for latents of up to 128 numbers."""


def elbo(
    output: Reconstructed,
    images: Images,
    *,
    reconstruction: str | ReconstructionLoss = "rmse",
    beta: float | Tensor | None = None,
    free_bits: float = 0.0,
) -> ElboTerms:
    """The objective: mean reconstruction term + beta * KL.

    With free bits, KL below a threshold is not penalised; see `kl_and_penalty`.

    Args:
        output: What the model returned for `images`.
        images: The targets, `[b, 3, h, w]` in [0, 1].
        reconstruction: A name from `RECONSTRUCTIONS`, or a function of (reconstruction, images) with a value per item.
        beta: Weight of the KL in nats; None for the default of the named term and the latents' size
            (`RECONSTRUCTIONS`, `scaled_beta`). A function has no default. A tensor spares recompilation where it
            changes with the step.
        free_bits: Threshold per latent dimension, in nats, at least 0.

    Returns:
        The total and its unweighted parts, means over the batch.

    Raises:
        UnknownNameError: For a name that is not in `RECONSTRUCTIONS`.
        InvalidOptionError: If `beta` or `free_bits` is negative or not finite, or a function comes without `beta`.
        InvalidImageError: If the images are 8-bit ones.
        ShapeError: If reconstruction and images differ in shape, or a loss does not give one value per item.
    """
    term = _resolve_reconstruction(reconstruction, beta)
    loss, default_beta = term.loss, term.beta_for(output.posterior.mean[0].numel())
    if isinstance(beta, int | float):
        check_nonnegative(beta=beta)
    check_nonnegative(free_bits=free_bits)
    values = loss(output.reconstruction, images)
    if values.shape != (len(images),):
        raise ShapeError(
            f"A reconstruction loss must give one value per item, [{len(images)}], got {list(values.shape)}; do not"
            " average over the batch."
        )
    reconstruction_term = values.mean()
    divergence, penalty = kl_and_penalty(output.posterior, free_bits)
    total = reconstruction_term + (default_beta if beta is None else beta) * penalty
    return ElboTerms(total, reconstruction_term, divergence)


def _resolve_reconstruction(reconstruction: str | ReconstructionLoss, beta: float | Tensor | None) -> WeightedLoss:
    if callable(reconstruction):
        if beta is None:
            raise InvalidOptionError("A loss of your own needs a beta: the weight of the KL that suits its scale.")
        return WeightedLoss(reconstruction, 0.0)
    if reconstruction not in RECONSTRUCTIONS:
        raise UnknownNameError("reconstruction term", reconstruction, RECONSTRUCTIONS)
    return RECONSTRUCTIONS[reconstruction]


def _difference(reconstruction: Tensor, images: Tensor) -> Float[Tensor, "b d"]:
    if reconstruction.shape != images.shape:
        raise ShapeError(
            f"Reconstruction and images must have one shape, got {list(reconstruction.shape)} and {list(images.shape)}."
        )
    if not images.is_floating_point():
        raise InvalidImageError(f"Images must be floating point in [0, 1], got {images.dtype}; divide 8 bits by 255.")
    return (at_least_float32(reconstruction) - at_least_float32(images)).flatten(1)


def _soft_clip(value: Tensor, low: float) -> Tensor:
    return low + torch.nn.functional.softplus(value - low)
