"""Learned perceptual distance of reconstructions to images."""

import os

from torch import Tensor

from transfervae.metrics.mean import MeanOverImages
from transfervae.model import VAEOutput
from transfervae.objectives.perceptual import LearnedDistance, PerceptualNetwork
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem


@records_options
class LPIPS(MeanOverImages):
    """Learned perceptual image patch similarity (Zhang et al. 2018), mean over images; 0 for equal images."""

    higher_is_better = False

    def __init__(self, *, network: PerceptualNetwork = "alex", weights: str | os.PathLike[str] = "default") -> None:
        """Read the network.

        Args:
            network: "alex", "squeeze" or "vgg": figures of different ones cannot be compared. "alex" is what
                evaluations mostly take, "vgg" what losses mostly take.
            weights: "default" for torchvision's ImageNet weights, which are fetched once; or a file of them.

        Raises:
            InvalidOptionError: For another network.
            WeightsUnavailableError: If the weights are not on this machine and cannot be fetched.
            WeightsMismatchError: If the file is of another network.
        """
        super().__init__()
        self.distance = LearnedDistance(network, weights)

    def values(self, output: VAEOutput, images: Images) -> PerItem:
        """The value of each image, `[b]`.

        Raises:
            InvalidOptionError: If the images are smaller than the network takes.
        """
        distances: Tensor = self.distance(output.reconstruction.clamp(0, 1), images)
        return distances
