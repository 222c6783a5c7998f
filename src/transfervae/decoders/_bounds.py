"""Images in [0, 1] from decoders whose last layer is linear."""

from torch import Tensor


def clamp_to_unit(values: Tensor) -> Tensor:
    """Clamp to [0, 1] in at least float32, with the identity's gradient (straight-through, Bengio et al. 2013).

    A plain clamp would have no gradient where a value lies outside, so that a pixel there could not be trained back.
    """
    values = values.float()
    return values + (values.clamp(0, 1) - values).detach()
