"""Metrics of colour, apart from brightness."""

import torch
from jaxtyping import Float
from torch import Tensor

from transfervae.metrics.mean import MeanOverImages
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem

CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""RGB to Cb and Cr, as in JPEG (ITU-T T.871, section 7), without their offset: 0 is gray, and the range is 1."""


@records_options
class ChromaError(MeanOverImages):
    """Absolute error of the colour apart from its brightness (Cb and Cr of JPEG), mean over images, in [0, 1]."""

    higher_is_better = False

    def values(self, output: VAEOutput, images: Images) -> PerItem:
        """The value of each image, `[b]`."""
        return chroma_error(output.reconstruction, images)


def chroma_error(reconstruction: Images, images: Images) -> PerItem:
    """Absolute error of Cb and Cr, mean over both and all pixels, in [0, 1].

    Args:
        reconstruction: `[b, 3, h, w]` in [0, 1].
        images: `[b, 3, h, w]` in [0, 1].
    """
    return (_chroma(reconstruction) - _chroma(images)).abs().flatten(1).mean(dim=1)


def _chroma(images: Images) -> Float[Tensor, "b 2 h w"]:
    weights = torch.tensor(CHROMA, device=images.device, dtype=torch.float32)
    return torch.einsum("kc,bchw->bkhw", weights, images.float())
