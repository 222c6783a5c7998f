"""Networks that tell images from reconstructions."""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu
from torch.nn.utils.parametrizations import spectral_norm

from transfervae.backbones import FrozenBackbone, Node
from transfervae.backbones._folding import fold_normalisation
from transfervae.decoders._bounds import clamp_to_unit
from transfervae.errors import InvalidOptionError
from transfervae.objectives.perceptual import Unregistered, create_at, read_elsewhere
from transfervae.options import PartTable, records_options
from transfervae.shapes import Images, at_least_float32, check_positive

SLOPE = 0.2
"""Of the leaky rectifier below 0."""

WIDEST_MULTIPLE = 8
RESIDUAL_KERNEL = 9
DEFAULT_SIZE = (224, 224)
"""Where the width of features is looked up, for a network whose own size is not known."""


class Judgement(NamedTuple):
    """What a discriminator makes of a batch.

    Attributes:
        logits: One map per head, `[b, ...]`: the higher, the more an image looks like a photograph.
        features: What the logits were made from, one per layer or node, `[b, c, ...]`.
    """

    logits: list[Tensor]
    features: list[Tensor]


class Discriminator(nn.Module):
    """What the adversarial term needs of a discriminator."""

    def attach(self, backbone: FrozenBackbone) -> None:
        """Take what it needs of the encoder's network; called once, before a training begins."""

    def forward(self, images: Images) -> Judgement:
        """Judge images `[b, 3, h, w]` whose values lie in [0, 1], or a little outside.

        Raises:
            InvalidOptionError: If the images are too small, or the discriminator is not attached.
        """
        raise NotImplementedError


@records_options
class PatchDiscriminator(Discriminator):
    """PatchGAN (Isola et al. 2017): 4x4 convolutions that judge overlapping patches.

    Spectral normalisation (Miyato et al. 2018) takes the place of batch normalisation, so that images of a batch are
    judged each by itself, and several processes need no common statistics.
    """

    def __init__(self, *, width: int = 64, layers: int = 3) -> None:
        """Make a network with new weights.

        Args:
            width: Channels of the first layer; later ones have up to 8 times as many.
            layers: How often the grid is halved; three give patches of 70 pixels.

        Raises:
            InvalidOptionError: If a number is below 1.
        """
        super().__init__()
        check_positive(width=width)
        check_positive(layers=layers, at_most=8)
        channels = [3, *(width * min(2**layer, WIDEST_MULTIPLE) for layer in range(layers + 1))]
        strides = [2] * layers + [1]
        self.convolutions = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, after, kernel_size=4, stride=stride, padding=1))
            for before, after, stride in zip(channels, channels[1:], strides, strict=False)
        )
        self.to_logit = spectral_norm(nn.Conv2d(channels[-1], 1, kernel_size=4, padding=1))
        self.smallest_side = 3 * 2**layers
        """Shortest side of images that leaves something to judge, in pixels."""

    def forward(self, images: Images) -> Judgement:
        """Judge patches of images.

        Raises:
            InvalidOptionError: If the images are too small.
        """
        if min(images.shape[2:]) < self.smallest_side:
            raise InvalidOptionError(
                f"The patch discriminator with {len(self.convolutions) - 1} layers needs images of at least"
                f" {self.smallest_side} pixels a side, got {images.shape[2]}x{images.shape[3]}; take fewer layers."
            )
        grid = 2 * images - 1
        features = []
        for convolution in self.convolutions:
            grid = leaky_relu(convolution(grid), SLOPE)
            features.append(grid)
        return Judgement([self.to_logit(grid)], features)


@records_options
class FeatureDiscriminator(Discriminator):
    """Small heads on features of a frozen network at several nodes (Sauer et al. 2023; Zheng et al. 2025).

    Each node has a 1x1 convolution, a residual convolution over 9 positions, which lie row after row and wrap around,
    and a 1x1 convolution to one logit a position, all with spectral normalisation.
    """

    def __init__(
        self,
        *,
        network: str | None = None,
        nodes: Node | Sequence[Node] | None = None,
        weights: str | os.PathLike[str] | None = "default",
        image_size: int | None = None,
    ) -> None:
        """Choose a network; that of the encoder is known once training begins (`attach`).

        Args:
            network: Name of a backbone, as `create_backbone` takes it; the encoder's if None.
            nodes: Where its features are judged, one or several; four of them, as `spread_nodes` finds them, if None.
            weights: Of a named network: default, a file, or none.
            image_size: Side to which images are resized for the network, in pixels; as they are if None.

        Raises:
            InvalidOptionError: If weights are given without a network that they are of.
            TransferVAEError: If a named network cannot be created, as `create_backbone`.
        """
        super().__init__()
        if network is None and weights != "default":
            raise InvalidOptionError("The feature discriminator has weights without a network; name it too.")
        if image_size is not None:
            check_positive(image_size=image_size)
        self._nodes = nodes
        self._size = None if image_size is None else (image_size, image_size)
        self._network: Unregistered | None = None
        self.heads = nn.ModuleList()
        if network is not None:
            self._take(create_at(network, nodes, weights))

    def attach(self, backbone: FrozenBackbone) -> None:
        """Take the encoder's network, if no other was named."""
        if self._network is None:
            self._take(read_elsewhere(backbone, self._nodes))

    def forward(self, images: Images) -> Judgement:
        """Judge images at each node; values outside [0, 1] are clamped, with the identity's gradient.

        Raises:
            InvalidOptionError: If there is no network yet.
        """
        if self._network is None:
            raise InvalidOptionError(
                "The feature discriminator has no network: call objective.attach(vae.backbone) first."
            )
        if self._size is not None and tuple(images.shape[2:]) != self._size:
            images = interpolate(images, size=self._size, mode="bilinear", antialias=True)
        network = cast(FrozenBackbone, self._network.on(images.device))
        features = [at_least_float32(grid) for grid in network.maps(clamp_to_unit(images))]
        return Judgement([head(grid) for head, grid in zip(self.heads, features, strict=True)], features)

    @torch.no_grad()
    def _take(self, network: FrozenBackbone) -> None:
        network = fold_normalisation(network)
        self._network = Unregistered(network)
        size = self._size or network.provenance.native_size or DEFAULT_SIZE
        gray = network.mean.new_full((1, 3, *size), 0.5)
        self.heads.extend(PositionHead(grid.shape[1]) for grid in network.maps(gray))


class PositionHead(nn.Module):
    """One logit for each position of a map."""

    def __init__(self, channels: int) -> None:
        """Make a head with new weights.

        Args:
            channels: Of the map.
        """
        super().__init__()
        self.first = spectral_norm(nn.Conv1d(channels, channels, kernel_size=1))
        self.residual = spectral_norm(
            nn.Conv1d(
                channels,
                channels,
                kernel_size=RESIDUAL_KERNEL,
                padding=RESIDUAL_KERNEL // 2,
                padding_mode="circular",
            )
        )
        self.to_logit = spectral_norm(nn.Conv1d(channels, 1, kernel_size=1))

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, c, h, w]` to logits `[b, 1, h * w]`."""
        row = leaky_relu(self.first(_unit_scale(grid.flatten(2))), SLOPE)
        while row.shape[2] < RESIDUAL_KERNEL // 2:  # a row cannot wrap around itself more than once
            row = row.repeat(1, 1, 2)
        changed = leaky_relu(self.residual(row), SLOPE)
        logits: Tensor = self.to_logit((row + changed) / math.sqrt(2))
        return logits


def _unit_scale(row: Tensor) -> Tensor:
    """Bring each image's features to a mean square of 1: frozen features are large and unevenly scaled."""
    return row * (row.square().mean(dim=(1, 2), keepdim=True) + torch.finfo(row.dtype).eps).rsqrt()


DISCRIMINATORS = PartTable("discriminator", {"features": FeatureDiscriminator, "patch": PatchDiscriminator})
"""Discriminators by name; each takes its options by keyword."""
