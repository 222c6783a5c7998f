"""The KL term."""

from collections.abc import Sequence

from transfervae import losses
from transfervae.errors import InvalidOptionError
from transfervae.objectives.term import ModelOutput, Term, TermValue
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem, check_nonnegative


@records_options
class KL(Term):
    """KL of the posterior to the standard normal, summed over latent dimensions, in nats.

    Its default weight is the one that suits the reconstruction term beside it (`Term.kl_weight`) and the latents' size
    (`losses.scaled_beta`).
    """

    def __init__(self, *, free_bits: float = 0.0, capacity: float | None = None) -> None:
        """Make a term.

        Args:
            free_bits: KL per latent dimension below this is not penalised, in nats (Kingma et al. 2016).
            capacity: What is minimised is the distance of the KL from this, in nats per item (Burgess et al. 2018);
                the KL itself if None.

        Raises:
            InvalidOptionError: If a number is negative, or both are given.
        """
        super().__init__()
        check_nonnegative(free_bits=free_bits, capacity=capacity or 0.0)
        if free_bits and capacity is not None:
            raise InvalidOptionError("The KL takes free_bits or a capacity, not both.")
        self.free_bits = free_bits
        self.capacity = capacity

    def forward(self, output: ModelOutput, images: Images) -> PerItem:  # noqa: ARG002 - every term has them
        """One value per item, at least 0."""
        return losses.kl(output.posterior)

    def evaluate(self, output: ModelOutput, images: Images) -> TermValue:
        """The KL as it is, and what counts of it: what is above the free bits, or its distance from the capacity."""
        if self.capacity is not None:
            values = self(output, images)
            return TermValue(values.mean(), (values - self.capacity).abs().mean())
        return TermValue(*losses.kl_and_penalty(output.posterior, self.free_bits))

    def default_weight(self, others: Sequence[Term], latent_size: int) -> float:
        """The one that suits the first reconstruction term among the others, and latents of some size.

        Raises:
            InvalidOptionError: If there is none that names one.
        """
        for term in others:
            if term.kl_weight is not None:
                return term.kl_weight if term.is_likelihood else losses.scaled_beta(term.kl_weight, latent_size)
        raise InvalidOptionError(
            "No reconstruction term here says which weight of the KL suits it; give one, such as"
            ' Spec("kl", weight=1e-4), or set kl_weight in your term.'
        )
