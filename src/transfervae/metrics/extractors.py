"""Frozen networks whose features metrics compare."""

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from transfervae.backbones import FrozenBackbone, create_backbone
from transfervae.backbones._weights import fetch_weights, read_weights
from transfervae.errors import MissingExtraError, WeightsMismatchError
from transfervae.files import digest_tensors
from transfervae.shapes import Images

INCEPTION_WIDTH = 2048


@runtime_checkable
class Extractor(Protocol):
    """A frozen network that a metric's figures depend on; reports name it.

    Attributes:
        label: The network, and where it is read.
        fingerprint: SHA-256 over its weights, in hexadecimal.
    """

    @property
    def label(self) -> str:
        """The network, and where it is read."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its weights, in hexadecimal."""


class PooledFeatures(nn.Module):
    """A backbone's features, averaged over positions: one vector per image.

    Images go to the network as they are, in [0, 1], neither resized nor rounded to 8 bits.

    Attributes:
        backbone: The network.
        num_features: Length of the vectors.
    """

    def __init__(self, extractor: str, node: int | str | None, weights: str | os.PathLike[str] | None) -> None:
        """Create the network; arguments as in `FeatureDistance`."""
        super().__init__()
        self.backbone: FrozenBackbone = create_backbone(extractor, node=node, weights=weights)
        self.num_features = self.backbone.out_channels

    @property
    def label(self) -> str:
        """The network, and where it is read."""
        return f"{self.backbone.provenance.name} at {self.backbone.provenance.place}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its weights, in hexadecimal."""
        return self.backbone.fingerprint

    def forward(self, images: Images) -> Tensor:
        """Features `[b, num_features]` of images in [0, 1]."""
        features: Tensor = self.backbone(images)
        return features.flatten(2).mean(dim=2).float()


class InceptionFeatures(nn.Module):
    """The features of Inception that FID was defined with (Heusel et al. 2017), through torch-fidelity.

    Images are rounded to 8 bits, and scaled to 299x299 as TensorFlow 1 does it.

    Attributes:
        label: For reports.
        fingerprint: SHA-256 over the weights, in hexadecimal.
        num_features: Length of the vectors: 2048.
    """

    label = "Inception of torch-fidelity at 2048, images of 8 bits"
    num_features = INCEPTION_WIDTH

    def __init__(self, weights: str | os.PathLike[str]) -> None:
        """Create the network.

        Args:
            weights: "default" for the published weights, which are fetched once (96 MB); or a file of them.

        Raises:
            MissingExtraError: If torch-fidelity is not installed.
            WeightsUnavailableError: If the weights are not on this machine and cannot be fetched.
            WeightsMismatchError: If the file is of another network.
        """
        super().__init__()
        try:
            module: Any = import_module("torch_fidelity.feature_extractor_inceptionv3")
        except ImportError:
            raise MissingExtraError("FID and KID", "evaluate") from None
        url: str = module.URL_INCEPTION_V3
        advice = "give one: {name: fid, weights: FILE}; fd and kd with the extractor packaged need no download."
        state = (
            fetch_weights(url, owner="Inception", advice=advice) if str(weights) == "default" else read_weights(weights)
        )
        with tempfile.TemporaryDirectory() as folder:  # it reads pickles with code in them: it gets tensors alone
            path = Path(folder) / "inception.pth"
            torch.save(state, path)
            try:
                self.network = module.FeatureExtractorInceptionV3(
                    "inception-v3-compat", [str(INCEPTION_WIDTH)], feature_extractor_weights_path=str(path)
                )
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise WeightsMismatchError(f"The weights do not fit Inception: {reason}") from error
        self.fingerprint = digest_tensors(state)

    def forward(self, images: Images) -> Tensor:
        """Features `[b, 2048]` of images in [0, 1]."""
        (features,) = self.network((images.clamp(0, 1) * 255).round().to(torch.uint8))
        return torch.as_tensor(features)
