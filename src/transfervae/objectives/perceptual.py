"""Perceptual terms: distances of features of frozen networks."""

import os
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from transfervae.backbones import FrozenBackbone, Node, create_backbone, is_backbone, spread_nodes
from transfervae.backbones._folding import fold_normalisation
from transfervae.backbones._weights import check_fit, fetch_weights, read_weights
from transfervae.errors import InvalidOptionError, UnsupportedBackboneError
from transfervae.files import digest_tensors
from transfervae.objectives.term import EncodedOutput, ModelOutput, Term
from transfervae.options import records_options
from transfervae.shapes import Images, PerItem, at_least_float32

PerceptualNetwork: TypeAlias = Literal["alex", "squeeze", "vgg"]

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

ENCODER = "encoder"
"""The node that stands for where the encoder reads its network."""

NODES = 4
"""Number of nodes whose features are compared if none are named."""


class LearnedDistance(nn.Module):
    """Learned perceptual image patch similarity (LPIPS, version 0.1; Zhang et al. 2018).

    Squared distances of a classifier's features, normalised at each position and weighted by what people judged alike.
    The weights of the judgements come with torchmetrics, those of the classifier are fetched. Nothing of it is trained,
    and dropout is never alive.

    Attributes:
        network: "alex", "squeeze" or "vgg".
        label: For reports.
        fingerprint: SHA-256 over the classifier's weights, in hexadecimal.
    """

    def __init__(self, network: PerceptualNetwork, weights: str | os.PathLike[str]) -> None:
        """Read the network; arguments and errors as in `Perceptual`."""
        from torchmetrics.functional.image.lpips import _NoTrainLpips

        super().__init__()
        if network not in NETWORKS:
            raise InvalidOptionError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}.")
        owner, url = f"LPIPS's {network}", NETWORKS[network]
        advice = "give one as weights; the metrics fd and kd and the term features work without a download."
        state = fetch_weights(url, owner=owner, advice=advice) if str(weights) == "default" else read_weights(weights)
        self.network = network
        self.label = f"LPIPS 0.1 of {network}"
        self.fingerprint = digest_tensors({name: state[name] for name in state if name.startswith("features.")})
        self.distance = _NoTrainLpips(net=network, pnet_rand=True)
        own = self.distance.net.state_dict()
        # torchmetrics cuts the classifier's features into slices: slice2.3.weight is features.3.weight
        found = {name: state.get(re.sub(SLICE, "features.", name)) for name in own}
        check_fit(own, {name: value for name, value in found.items() if value is not None}, owner=owner)
        self.distance.net.load_state_dict(found)

    def forward(self, reconstruction: Tensor, images: Tensor) -> PerItem:
        """One value per item, at least 0, of images `[b, 3, h, w]` in [0, 1].

        Raises:
            InvalidOptionError: If the images are smaller than the network takes.
        """
        smallest = SMALLEST_SIDES[self.network]
        if min(images.shape[2:]) < smallest:
            raise InvalidOptionError(
                f"LPIPS with {self.network} needs images of at least {smallest} pixels a side, got"
                f" {images.shape[2]}x{images.shape[3]}."
            )
        distances: Tensor = self.distance(at_least_float32(reconstruction), at_least_float32(images), normalize=True)
        return distances.flatten()


class Unregistered:
    """A module that is no part of the one that holds it: neither saved, nor trained, nor moved with it."""

    def __init__(self, module: nn.Module) -> None:
        """Hold a module."""
        self._module = module.requires_grad_(False)
        self._device: torch.device | None = None

    def on(self, device: torch.device) -> nn.Module:
        """The module, on a device; it is moved only when that changes."""
        if device != self._device:
            self._module, self._device = self._module.to(device), device
        return self._module


@records_options
class Perceptual(Term):
    """LPIPS of the reconstruction (Zhang et al. 2018): the learned distance of a classifier's features."""

    def __init__(self, *, network: PerceptualNetwork = "vgg", weights: str | os.PathLike[str] = "default") -> None:
        """Read the network.

        Args:
            network: "vgg", which losses mostly take, "alex" or "squeeze".
            weights: "default" for torchvision's ImageNet weights, which are fetched once; or a file of them.

        Raises:
            InvalidOptionError: For another network.
            WeightsUnavailableError: If the weights are not on this machine and cannot be fetched.
            WeightsMismatchError: If the file is of another network.
        """
        super().__init__()
        self._network = Unregistered(LearnedDistance(network, weights))

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, at least 0."""
        distances: Tensor = self._network.on(images.device)(output.reconstruction, images)
        return distances


@records_options
class FeatureError(Term):
    """Squared error of the features of a frozen backbone, by default the encoder's own network.

    At each node the features are divided by their root mean square over channels at each position; the squared
    difference is averaged over positions and channels, then over nodes. Gradients reach the reconstruction, and none
    the network.
    """

    def __init__(
        self,
        *,
        extractor: str | None = None,
        nodes: Node | Sequence[Node] | None = None,
        weights: str | os.PathLike[str] | None = "default",
    ) -> None:
        """Choose a network; that of the encoder is known once training begins (`attach`).

        Args:
            extractor: Name of a backbone, as `create_backbone` takes it; the encoder's if None.
            nodes: Where its features are compared, one or several, as `node` of `create_backbone`; at its four finest
                grids, or four depths of one grid, if None. "encoder" for where the encoder reads its own network: a
                run then takes the originals' features from its cache.
            weights: Of a named extractor: default, a file, or none.

        Raises:
            InvalidOptionError: If weights are given without an extractor that they are of.
            TransferVAEError: If a named network cannot be created, as `create_backbone`.
        """
        super().__init__()
        if extractor is None and weights != "default":
            raise InvalidOptionError("The term features has weights without an extractor; name it too.")
        self._reads_as_encoder = nodes == ENCODER
        if self._reads_as_encoder and extractor is not None:
            raise InvalidOptionError("nodes='encoder' of the term features is for the encoder's own network.")
        self._nodes = nodes
        self._network: Unregistered | None = None
        if extractor is not None:
            self._network = Unregistered(fold_normalisation(create_at(extractor, self._nodes, weights)))

    def attach(self, backbone: FrozenBackbone) -> None:
        """Take the encoder's network, if no other was named: it is created once more, to be read at other nodes.

        Raises:
            InvalidOptionError: If it is no backbone.
        """
        if self._network is None:
            network = backbone if self._reads_as_encoder else read_elsewhere(backbone, self._nodes)
            self._network = Unregistered(fold_normalisation(network))

    def forward(self, output: ModelOutput, images: Images) -> PerItem:
        """One value per item, at least 0.

        Raises:
            InvalidOptionError: If there is no network yet.
        """
        if self._network is None:
            raise InvalidOptionError("The term features has no network: call objective.attach(vae.backbone) first.")
        network = self._network.on(images.device)
        if not isinstance(network, FrozenBackbone):
            raise TypeError
        with torch.no_grad():
            known = output.features if self._reads_as_encoder and isinstance(output, EncodedOutput) else None
            wanted = network.maps(images, fused=self._reads_as_encoder) if known is None else [known]
        made = at_least_float32(output.reconstruction).clamp(0, 1)
        found = network.maps(made, fused=self._reads_as_encoder)
        errors = [(_normalised(one) - _normalised(other)).square() for one, other in zip(found, wanted, strict=True)]
        return torch.stack([error.flatten(1).mean(dim=1) for error in errors]).mean(dim=0)

    def default_weight(self, others: Sequence[Term], latent_size: int) -> float:  # noqa: ARG002 - every term has them
        """A tenth: beside an absolute error it sharpens, and costs few dB."""
        return 0.1


def create_at(
    name: str,
    nodes: Node | Sequence[Node] | None,
    weights: str | os.PathLike[str] | None,
    *,
    image_size: Sequence[int] | None = None,
) -> FrozenBackbone:
    """A backbone that is read at several nodes, by default at four spread over its depth.

    Raises:
        TransferVAEError: As `create_backbone`.
    """
    chosen = spread_nodes(name, NODES) if nodes is None else nodes
    return create_backbone(name, node=chosen, weights=weights, image_size=image_size)


def read_elsewhere(backbone: FrozenBackbone, nodes: Node | Sequence[Node] | None) -> FrozenBackbone:
    """A backbone's network, created once more to be read at other nodes.

    A network in memory, or one that can be read in one place only, is read where it was.

    Raises:
        InvalidOptionError: If it is no backbone.
    """
    if not isinstance(backbone, FrozenBackbone):
        raise InvalidOptionError(f"attach takes a FrozenBackbone, got {type(backbone).__name__}.")
    source = backbone.provenance
    if not is_backbone(source.name):
        return backbone
    try:
        return create_at(source.name, nodes, source.weights, image_size=source.options.get("image_size"))
    except UnsupportedBackboneError:
        if nodes is None:  # it can be read in one place only
            return backbone
        raise


def _normalised(features: Tensor) -> Tensor:
    values = at_least_float32(features)
    return values * (values.square().mean(dim=1, keepdim=True) + torch.finfo(values.dtype).eps).rsqrt()
