"""Distances of two sets of images in the space of a frozen network's features."""

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from transfervae.backbones import FrozenBackbone, create_backbone
from transfervae.errors import InvalidOptionError
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images

DEFAULT_EXTRACTOR = "packaged"
SUBSETS = 100
SUBSET_SIZE = 1000


class PooledFeatures(nn.Module):
    """A backbone's features, averaged over positions: one vector per image.

    Attributes:
        backbone: The network.
        num_features: Length of the vectors.
    """

    def __init__(self, extractor: str, node: int | str | None, weights: str | None) -> None:
        """Create the network; arguments as in `FeatureDistance`."""
        super().__init__()
        self.backbone: FrozenBackbone = create_backbone(extractor, node=node, weights=weights)
        self.num_features = self.backbone.out_channels

    def forward(self, images: Images) -> Tensor:
        """Features `[b, num_features]` of images in [0, 1]."""
        features: Tensor = self.backbone(images)
        return features.flatten(2).mean(dim=2).float()


class _OfReconstructions:
    """Compares reconstructions with images in a network's pooled features; comes before a metric of torchmetrics.

    Attributes:
        settings: Further arguments of that metric.
    """

    settings: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, *, extractor: str = DEFAULT_EXTRACTOR, node: int | str | None = None, weights: str | None = "default"
    ) -> None:
        """Start empty.

        Args:
            extractor: Name of a backbone, as `create_backbone` takes it.
            node: Where its features are read; its default if None.
            weights: Its weights: default, a file, or none.
        """
        metric: Any = super()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*will save all extracted features.*"
            )  # `KernelDistance` says so
            metric.__init__(feature=PooledFeatures(extractor, node, weights), normalize=True, **self.settings)

    def update(self, output: VAEOutput, images: Images) -> None:
        """Add one batch of images and their reconstructions."""
        metric: Any = super()
        metric.update(images, real=True)
        metric.update(output.reconstruction.float(), real=False)


@records_options
class FeatureDistance(_OfReconstructions, FrechetInceptionDistance):  # type: ignore[misc] # update takes other arguments
    """Frechet distance of reconstructions to images in a network's pooled features (Heusel et al. 2017).

    Images go to the network as they are, in [0, 1], neither resized nor rounded to 8 bits. Means and covariances are
    summed in float64, and no features are kept. With fewer images than features the covariances are singular: the
    distance is then biased upwards, and only comparable at the same number of images.
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """The distance, at least 0.

        Raises:
            InvalidOptionError: If there are fewer than two images.
        """
        _check_count(int(self.real_features_num_samples))
        return super().compute()


@records_options
class KernelDistance(_OfReconstructions, KernelInceptionDistance):  # type: ignore[misc] # update takes other arguments
    """Kernel distance of reconstructions to images in a network's pooled features (Binkowski et al. 2018).

    The mean over 100 random subsets of up to 1,000 images; unlike `FeatureDistance` it is unbiased, so that it suits
    few images. All features are kept, on the device.
    """

    higher_is_better = False
    settings = MappingProxyType({"subsets": SUBSETS, "subset_size": SUBSET_SIZE})

    def compute(self) -> Any:
        """The distance; about 0 for equal sets, and may be slightly below.

        Raises:
            InvalidOptionError: If there are fewer than two images.
        """
        count = sum(len(batch) for batch in self.real_features)
        _check_count(count)
        self.subset_size = min(SUBSET_SIZE, count)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same subsets every time
            mean, _ = super().compute()
        return mean


def _check_count(images: int) -> None:
    if images < 2:
        raise InvalidOptionError("A distance of features needs at least two images.")
