"""Distances of two sets of images in the space of a frozen network's features."""

import os
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from transfervae.errors import InvalidOptionError
from transfervae.metrics.extractors import InceptionFeatures, PooledFeatures
from transfervae.model import VAEOutput
from transfervae.options import records_options
from transfervae.shapes import Images

DEFAULT_EXTRACTOR = "packaged"
SUBSETS = 100
SUBSET_SIZE = 1000


class _OfReconstructions:
    """Compares reconstructions with images in a network's features; comes before a metric of torchmetrics.

    Attributes:
        settings: Further arguments of that metric.
        num_features: Length of the vectors.
    """

    settings: Mapping[str, Any] = MappingProxyType({})
    num_features: int

    def start(self, extractor: PooledFeatures | InceptionFeatures) -> None:
        """Start empty, with a network whose features are compared."""
        self.num_features = extractor.num_features
        metric: Any = super()
        with warnings.catch_warnings():
            # `KernelDistance` says so
            warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
            metric.__init__(feature=extractor, normalize=True, **self.settings)

    def update(self, output: VAEOutput, images: Images) -> None:
        """Add one batch of images and their reconstructions."""
        metric: Any = super()
        metric.update(images, real=True)
        metric.update(output.reconstruction.float(), real=False)


class _FrechetDistance(_OfReconstructions, FrechetInceptionDistance):  # type: ignore[misc] # update takes other arguments
    higher_is_better = False

    def compute(self) -> Tensor:
        """The distance, at least 0.

        Raises:
            InvalidOptionError: If there are fewer than two images.
        """
        _check_count(int(self.real_features_num_samples))
        return super().compute()


class _KernelDistance(_OfReconstructions, KernelInceptionDistance):  # type: ignore[misc] # update takes other arguments
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


@records_options
class FeatureDistance(_FrechetDistance):
    """Frechet distance of reconstructions to images in a backbone's pooled features (Heusel et al. 2017).

    Images go to the network as they are, in [0, 1], neither resized nor rounded to 8 bits. Means and covariances are
    summed in float64, and no features are kept. With fewer images than features the covariances are singular: the
    distance is then biased upwards, and only comparable at the same number of images.
    """

    def __init__(
        self,
        *,
        extractor: str = DEFAULT_EXTRACTOR,
        node: int | str | None = None,
        weights: str | os.PathLike[str] | None = "default",
    ) -> None:
        """Start empty.

        Args:
            extractor: Name of a backbone, as `create_backbone` takes it.
            node: Where its features are read; its default if None.
            weights: Its weights: default, a file, or none.
        """
        self.start(PooledFeatures(extractor, node, weights))


@records_options
class KernelDistance(_KernelDistance):
    """Kernel distance of reconstructions to images in a backbone's pooled features (Binkowski et al. 2018).

    The mean over 100 random subsets of up to 1,000 images; unlike `FeatureDistance` it is unbiased, so that it suits
    few images. All features are kept, on the device.
    """

    def __init__(
        self,
        *,
        extractor: str = DEFAULT_EXTRACTOR,
        node: int | str | None = None,
        weights: str | os.PathLike[str] | None = "default",
    ) -> None:
        """Start empty; arguments as in `FeatureDistance`."""
        self.start(PooledFeatures(extractor, node, weights))


@records_options
class FID(_FrechetDistance):
    """Frechet Inception distance of reconstructions to images (Heusel et al. 2017), as torch-fidelity computes it.

    Published figures of reconstructions (rFID) are for 256x256 images, mostly 50,000 of them; with fewer than 2,048 the
    covariances are singular, and the distance is biased upwards.
    """

    def __init__(self, *, weights: str | os.PathLike[str] = "default") -> None:
        """Start empty.

        Args:
            weights: Of Inception: "default" for those of torch-fidelity, which are fetched once (96 MB); or a file of
                them.
        """
        self.start(InceptionFeatures(weights))


@records_options
class KID(_KernelDistance):
    """Kernel Inception distance of reconstructions to images (Binkowski et al. 2018), as torch-fidelity computes it.

    The mean over 100 random subsets of up to 1,000 images. It is unbiased, so that it suits few images.
    """

    def __init__(self, *, weights: str | os.PathLike[str] = "default") -> None:
        """Start empty; arguments as in `FID`."""
        self.start(InceptionFeatures(weights))


def _check_count(images: int) -> None:
    if images < 2:
        raise InvalidOptionError("A distance of features needs at least two images.")
