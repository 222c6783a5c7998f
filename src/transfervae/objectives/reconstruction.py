"""Reconstruction terms: thin modules over the functions in `losses`, each with the KL weight that suits its scale."""

from transfervae import losses
from transfervae.objectives.term import ModelOutput, Term
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem


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
