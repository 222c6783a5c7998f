"""Reconstruction terms: thin modules over the functions in `losses`, each with the KL weight that suits its scale."""

import math

from transfervae import losses
from transfervae.errors import InvalidOptionError
from transfervae.objectives.term import ModelOutput, Term
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem, at_least_float32, check_nonnegative

SCALE_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""How much each scale counts in multi-scale structural similarity, the finest first."""


@records_options
class RMSE(Term):
    """Root of the squared error's mean over channels and pixels, as `losses.rmse`."""

    kl_weight = losses.RECONSTRUCTIONS["rmse"].beta

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, in [1e-4, 1]."""
        return losses.rmse(output.reconstruction, images)


@records_options
class MSE(Term):
    """Squared error, mean over channels and pixels, as `losses.mse`."""

    kl_weight = losses.RECONSTRUCTIONS["mse"].beta

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, in [0, 1]."""
        return losses.mse(output.reconstruction, images)


@records_options
class L1(Term):
    """Absolute error, mean over channels and pixels, as `losses.l1`."""

    kl_weight = losses.RECONSTRUCTIONS["l1"].beta

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, in [0, 1]."""
        return losses.l1(output.reconstruction, images)


@records_options
class GaussianNLL(Term):
    """Negative log-likelihood under a Gaussian around the reconstruction, as `losses.gaussian_nll`."""

    kl_weight = losses.RECONSTRUCTIONS["gaussian_nll"].beta
    is_likelihood = True

    def __init__(self, *, sigma: float | None = None) -> None:
        """Make a term.

        Args:
            sigma: Standard deviation of a pixel value, above 0; calibrated to each batch (sigma-VAE) if None.
        """
        super().__init__()
        self.sigma = sigma

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, in nats, summed over channels and pixels."""
        return losses.gaussian_nll(output.reconstruction, images, sigma=self.sigma)


@records_options
class Charbonnier(Term):
    """Absolute error, rounded off at zero, as `losses.charbonnier`."""

    kl_weight = losses.RECONSTRUCTIONS["l1"].beta

    def __init__(self, *, epsilon: float = 1e-3) -> None:
        """Make a term.

        Args:
            epsilon: Error up to which it is round, above 0.
        """
        super().__init__()
        losses.check_epsilon(epsilon)
        self.epsilon = epsilon

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, in [epsilon, 1]."""
        return losses.charbonnier(output.reconstruction, images, epsilon=self.epsilon)


@records_options
class SSIMError(Term):
    """One minus structural similarity, as `losses.structural_similarity`."""

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, in [0, 2]."""
        return 1 - losses.structural_similarity(output.reconstruction, images)


@records_options
class MSSSIMError(Term):
    """One minus multi-scale structural similarity (Wang et al. 2003), for values in [0, 1].

    Of the five scales those count that the window of 11 pixels fits in, with their exponents scaled to the same sum:
    three at 64 pixels a side, five from 176 on.
    """

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, in [0, 1].

        Raises:
            InvalidOptionError: If the images are smaller than the window.
        """
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

        side = min(images.shape[2:])
        if side < losses.SSIM_WINDOW:
            raise InvalidOptionError(
                f"ms_ssim needs images of at least {losses.SSIM_WINDOW} pixels a side, got {side}."
            )
        scales = min(len(SCALE_EXPONENTS), 1 + int(math.log2(side / losses.SSIM_WINDOW)))
        scaled = sum(SCALE_EXPONENTS) / sum(SCALE_EXPONENTS[:scales])
        similarity = multiscale_structural_similarity_index_measure(
            at_least_float32(output.reconstruction),
            images,
            data_range=1.0,
            reduction="none",
            betas=tuple(scaled * exponent for exponent in SCALE_EXPONENTS[:scales]),
            normalize="relu",
        )
        return 1 - similarity.reshape(len(images))


@records_options
class FocalFrequency(Term):
    """Squared error of the spectrum; frequencies count the more, the worse they are, as `losses.focal_frequency`."""

    def __init__(self, *, alpha: float = 1.0) -> None:
        """Make a term.

        Args:
            alpha: How much more they count; 0 gives the squared error.
        """
        super().__init__()
        check_nonnegative(alpha=alpha)
        self.alpha = alpha

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, at least 0."""
        return losses.focal_frequency(output.reconstruction, images, alpha=self.alpha)
