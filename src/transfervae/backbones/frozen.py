"""The frozen contract, for any network that maps normalised images to a feature map."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from transfervae.errors import ImageSizeError
from transfervae.shapes import Features, Images, check_image_range, check_image_tensor, parse_image_size

NETWORK_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError, ZeroDivisionError)
"""What networks raise for image sizes that they cannot take."""

SIDE_MULTIPLES = (7, 8, 14, 16, 32)
SIZES_TRIED = 60


@dataclass(frozen=True)
class Source:
    """Where a backbone came from: what a saved model needs to find it again.

    Attributes:
        name: As given to `create_backbone`.
        node: Where the features are read.
        weights: "default", a file's path, or None for random weights.
        license: Licence of the weights, "unknown" where the publisher names none, None for weights of one's own.
        native_size: The image size that the network was trained at, if known.
    """

    name: str
    node: str | int
    weights: str | None
    license: str | None = None
    native_size: tuple[int, int] | None = None


class FrozenBackbone(nn.Module):
    """A pretrained network, its input normalisation, and the promise that neither ever changes.

    Parameters take no gradient; the network stays in evaluation mode, also after `train()`; parameters and buffers are
    bit-identical after any number of training steps. Gradients still flow through it to images that ask for them.

    Attributes:
        network: Maps normalised images `[b, 3, h, w]` to features `[b, c, h', w']`.
        source: Name, node, weights and licence.
        out_channels: Channels of the features.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, source: Source, *, out_channels: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Freeze a network; users call `create_backbone` instead.

        Args:
            network: Maps normalised images to features; it is changed in place.
            source: Name, node, weights and licence.
            out_channels: Channels of the features.
            mean: Per RGB channel, subtracted from images in [0, 1].
            std: Per RGB channel, divides them then.
        """
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.source = source
        self.out_channels = out_channels
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self._fingerprint: str | None = None
        self._shapes: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._range_seen = False

    def forward(self, images: Tensor) -> Features:
        """Compute features.

        The values' range is checked in every batch on the CPU and in evaluation mode; in training on an accelerator
        only in the first batch, since the check waits for the device. Compiled code leaves it out.

        Args:
            images: RGB in [0, 1], `[b, 3, h, w]`, any floating dtype.

        Returns:
            Features `[b, out_channels, h', w']`.

        Raises:
            InvalidImageError: If the tensor is no batch of RGB images in [0, 1].
            ImageSizeError: If the network cannot take the size; the nearest sizes that it can take are named.
        """
        checked = check_image_tensor(images).to(self.mean.dtype)
        if not torch.compiler.is_compiling():
            self.feature_shape((images.shape[-2], images.shape[-1]))
            self._check_range(checked)
        if self.network.training:
            self.network.eval()
        features: Tensor = self.network(self.normalise(checked))
        return features

    def normalise(self, images: Images) -> Images:
        """Map images in [0, 1] to the range that the network was trained on, `[b, 3, h, w]`."""
        return (images - self.mean) / self.std

    def train(self, mode: bool = True) -> "FrozenBackbone":
        """Keep the network in evaluation mode: its statistics are part of the pretrained weights."""
        super().train(mode)
        self.network.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> "FrozenBackbone":  # noqa: ARG002 - torch's signature
        """Change nothing: the backbone takes no gradient, whatever is asked of it."""
        return self

    def feature_shape(self, image_size: int | Sequence[int]) -> tuple[int, int, int]:
        """Shape (c, h', w') of the features of one image, found by running the network once per size.

        Args:
            image_size: Height and width in pixels, or one number.

        Raises:
            ImageSizeError: If the network cannot take the size; the nearest sizes that it can take are named.
        """
        size = parse_image_size(image_size)
        if size not in self._shapes:
            shape, reason = self._probe(size)
            if shape is None:
                raise ImageSizeError(self._size_message(size, reason))
            self._shapes[size] = shape
        return self._shapes[size]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, node and preprocessing as loaded, in hexadecimal."""
        if self._fingerprint is None:
            self._fingerprint = self._compute_fingerprint()
        return self._fingerprint

    @property
    def license(self) -> str | None:
        """Licence of the weights; "unknown" where the publisher names none, None for weights of one's own."""
        return self.source.license

    @property
    def config(self) -> dict[str, object]:
        """What finds this backbone again: plain values."""
        return {
            "name": self.source.name,
            "node": self.source.node,
            "weights": self.source.weights,
            "fingerprint": self.fingerprint,
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenBackbone":
        if fn(torch.zeros(0)).dtype != torch.float32:
            self._fingerprint = self.fingerprint  # of the weights as loaded: a cast does not make another backbone
        super()._apply(fn, recurse)
        return self

    def _check_range(self, images: Images) -> None:
        waits_in_training = images.device.type != "cpu" and self.training
        if not (waits_in_training and self._range_seen):
            check_image_range(images)
            self._range_seen = True

    def _compute_fingerprint(self) -> str:
        digest = hashlib.sha256()
        preprocessing = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        digest.update(json.dumps({"node": self.source.node, **preprocessing}, sort_keys=True).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def _probe(self, size: tuple[int, int]) -> tuple[tuple[int, int, int] | None, str]:
        try:
            features = self.network(self.mean.new_zeros(1, 3, *size))
        except NETWORK_ERRORS as error:
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            return None, reason or type(error).__name__
        _, channels, height, width = features.shape
        if not height or not width:
            return None, "nothing is left of the image at this depth"
        return (channels, height, width), ""

    def _size_message(self, size: tuple[int, int], reason: str) -> str:
        nearest = [f"{height}x{width}" for height, width in self._nearest_sizes(size)]
        advice = f"the nearest sizes that it takes: {', '.join(nearest)}" if nearest else "no size near it works"
        height, width = size
        return f"{self.source.name} at {self.source.node} cannot take {height}x{width} images; {advice} ({reason})."

    def _nearest_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        found = (candidate for candidate in self._candidates(size) if self._probe(candidate)[0] is not None)
        return list(islice(found, 2))

    def _candidates(self, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Sizes near the given one, nearest first: each side kept or rounded to multiples that networks ask for."""
        heights, widths = (
            {side} | {(side // multiple + up) * multiple for multiple in SIDE_MULTIPLES for up in (0, 1, 2)}
            for side in size
        )
        sizes = {(height, width) for height in heights for width in widths if height and width}
        nearest = sorted(sizes, key=lambda other: (abs(other[0] - size[0]) + abs(other[1] - size[1]), other))
        native = [self.source.native_size] if self.source.native_size else []
        return iter(dict.fromkeys(nearest[:SIZES_TRIED] + native))
