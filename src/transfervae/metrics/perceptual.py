"""Learned perceptual distance of reconstructions to images."""

import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.image.lpips import _NoTrainLpips

from transfervae.backbones._weights import check_fit, fetch_weights, read_weights
from transfervae.errors import InvalidOptionError
from transfervae.files import digest_tensors
from transfervae.metrics.mean import MeanOverImages
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem

NETWORKS: Mapping[str, str] = MappingProxyType(
    {
        "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "squeeze": "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
        "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    }
)
"""Where the weights of each network are published: torchvision's, of its whole classifier."""

SMALLEST_SIDES: Mapping[str, int] = MappingProxyType({"alex": 31, "squeeze": 17, "vgg": 16})
"""Shortest side of images that each network can take, in pixels."""

SLICE = r"^slices?\.?\d+\."


@records_options
class LPIPS(MeanOverImages):
    """Learned perceptual image patch similarity (Zhang et al. 2018), mean over images; 0 for equal images.

    Squared distances of a classifier's features, normalised at each position and weighted by what people judged alike
    (version 0.1). The weights of the judgements come with torchmetrics, those of the classifier are fetched.

    Attributes:
        label: For reports.
        fingerprint: SHA-256 over the classifier's weights, in hexadecimal.
    """

    higher_is_better = False

    def __init__(
        self,
        *,
        network: Literal["alex", "squeeze", "vgg"] = "alex",
        weights: str | os.PathLike[str] = "default",
    ) -> None:
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
        if network not in NETWORKS:
            raise InvalidOptionError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}.")
        owner = f"LPIPS's {network}"
        url = NETWORKS[network]
        state = fetch_weights(url, owner=owner) if str(weights) == "default" else read_weights(weights)
        self.network = network
        self.distance = _NoTrainLpips(net=network, pnet_rand=True)
        self.label = f"LPIPS 0.1 of {network}"
        self.fingerprint = digest_tensors({name: state[name] for name in state if name.startswith("features.")})
        own = self.distance.net.state_dict()
        # torchmetrics cuts the classifier's features into slices: slice2.3.weight is features.3.weight
        found = {name: state.get(re.sub(SLICE, "features.", name)) for name in own}
        check_fit(own, {name: value for name, value in found.items() if value is not None}, owner=owner)
        self.distance.net.load_state_dict(found)

    def values(self, output: VAEOutput, images: Images) -> PerItem:
        """The value of each image, `[b]`.

        Raises:
            InvalidOptionError: If the images are smaller than the network takes.
        """
        smallest = SMALLEST_SIDES[self.network]
        if min(images.shape[2:]) < smallest:
            raise InvalidOptionError(
                f"LPIPS with {self.network} needs images of at least {smallest} pixels a side, got"
                f" {images.shape[2]}x{images.shape[3]}."
            )
        distances: Tensor = self.distance(output.reconstruction.float().clamp(0, 1), images, normalize=True)
        return torch.flatten(distances)
