"""The frozen contract, for any network that maps normalised images to a feature map."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from transfervae.backbones._hooks import LayerFeatures, ModuleFeatures
from transfervae.backbones._size_search import name_sizes, nearest_sizes
from transfervae.backbones.feature_spec import FeatureSpec, Node
from transfervae.errors import ImageSizeError, InvalidOptionError, TransferVAEError
from transfervae.shapes import Features, Images, check_image_range, check_image_tensor, parse_image_size

NETWORK_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError, ZeroDivisionError)
"""What networks raise for image sizes that they cannot take."""

DEFAULT_SIZE = (224, 224)
"""Where the width of features is looked up, for a network whose own size is not known."""

TRIES = 8
"""How many sizes are tried, for each multiple that networks ask for, to name the nearest that work."""

TRIES_MADE = 2
"""The same for a network that must be made anew for each size."""

MODULE_PREFIX = "module:"

Size = tuple[int, int]


@dataclass(frozen=True)
class Provenance:
    """Where a backbone came from: what a saved model needs to find it again.

    Attributes:
        name: As given to `create_backbone`.
        node: Where the features are read; several nodes in the order that they are fused in.
        weights: "default", a file's path, or None for random weights.
        options: Those of `create_backbone` that differ from its defaults: plain values.
        license: Licence of the weights, "unknown" where the publisher names none, None for weights of one's own.
        native_size: The image size that the network was trained at, if known.
    """

    name: str
    node: Node | tuple[Node, ...]
    weights: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    native_size: Size | None = None

    @property
    def place(self) -> str:
        """Where the features are read, in words: "block5_pool", or "1, 2, 3 (concat)"."""
        if not isinstance(self.node, tuple):
            return str(self.node)
        return f"{', '.join(map(str, self.node))} ({self.options['fuse']})"


class FrozenBackbone(nn.Module):
    """A pretrained network, its input normalisation, and the promise that neither ever changes.

    Parameters take no gradient; the network stays in evaluation mode, also after `train()`; parameters and buffers are
    bit-identical after any number of training steps. Gradients still flow through it to images that ask for them.

    Attributes:
        network: Maps normalised images `[b, 3, h, w]` to features `[b, c, h', w']`.
        provenance: Name, node, weights and licence.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        provenance: Provenance,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        takes_if_made_for: Callable[[Size], bool] | None = None,
    ) -> None:
        """Freeze a network; users call `create_backbone` or `from_module` instead.

        Args:
            network: Maps normalised images to features; it is changed in place.
            provenance: Name, node, weights and licence.
            mean: Per RGB channel, subtracted from images in [0, 1].
            std: Per RGB channel, divides them then.
            takes_if_made_for: Whether the network takes a size once it is created for it, where that can be done.
        """
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            _check_channels(name, values)
        self.network = network.requires_grad_(False).eval()
        self.provenance = provenance
        self._takes_if_made_for = takes_if_made_for
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self._before_cast: tuple[str, str] | None = None
        self._shapes: dict[Size, tuple[int, int, int]] = {}
        self._range_seen = False
        self._layouts_known = False

    @staticmethod
    def from_module(
        module: nn.Module,
        node: str | Sequence[str] | None = None,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        fuse: str = "concat",
        grid: int | Sequence[int] | None = None,
    ) -> "FrozenBackbone":
        """Freeze a copy of a network that is in memory; the network itself stays as it is.

        Args:
            module: Maps normalised images `[b, 3, h, w]` to a map of features, or has submodules that give one.
                Channels may come first or last; tokens are laid out as a map, prefix tokens left out.
            node: Name of the submodule whose output is read, several names, or None for the module's own output.
            mean: Per RGB channel, subtracted from images in [0, 1].
            std: Per RGB channel, divides them then.
            fuse: "concat", "sum" or "mean", for several nodes.
            grid: (height, width) that the maps of several nodes are resampled to; the first one's if None.

        Returns:
            The frozen backbone. A model with it is saved as any other, and read with
            `TransferVAE.from_pretrained(folder, backbone=...)`.

        Raises:
            UnknownNameError: If a node does not exist.
            InvalidOptionError: If a node is named twice, `module` is none, or `mean` and `std` are not three numbers.
        """
        if not isinstance(module, nn.Module):
            raise InvalidOptionError(f"module must be a torch.nn.Module, got {type(module).__name__}.")
        network = copy.deepcopy(module)
        name = f"{MODULE_PREFIX}{type(module).__name__}"
        if node is None:
            spec = FeatureSpec(("output",))
            return FrozenBackbone(LayerFeatures(network, spec), Provenance(name, "output", name), mean=mean, std=std)
        spec = FeatureSpec.parse(node, fuse=fuse, grid=grid, norm=False)
        provenance = Provenance(name, spec.node, name, options=spec.options)
        return FrozenBackbone(ModuleFeatures(network, spec), provenance, mean=mean, std=std)

    @property
    def out_channels(self) -> int:
        """Channels of the features.

        Raises:
            ImageSizeError: If no size was used yet and the network takes neither its own size nor 224x224.
        """
        if not self._shapes:
            self.feature_shape(self.provenance.native_size or DEFAULT_SIZE)
        return next(iter(self._shapes.values()))[0]

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
        features: Tensor = self.network(self._prepare(images))
        return features

    def maps(self, images: Tensor, *, fused: bool = False) -> list[Tensor]:
        """The features of each node by itself, neither resampled nor fused, in the order of the nodes.

        The values' range is not checked: terms compare features of reconstructions, whose NaN is to reach the loss.

        Args:
            images: RGB in [0, 1], `[b, 3, h, w]`, any floating dtype.
            fused: Give one map, resampled and fused as `forward` does, in place of one a node.

        Returns:
            One map `[b, c, h', w']` a node.

        Raises:
            InvalidImageError: If the tensor is no batch of RGB images.
            ImageSizeError: If the network cannot take the size.
        """
        prepared = self._prepare(images, in_any_range=True)
        if fused:
            return [self.network(prepared)]
        read: Callable[[Images], list[Tensor]] | None = getattr(self.network, "maps", None)
        return [self.network(prepared)] if read is None else read(prepared)

    def _prepare(self, images: Tensor, *, in_any_range: bool = False) -> Images:
        """Check and normalise images, and make sure that the network is still frozen."""
        checked = check_image_tensor(images).to(self.mean.dtype)
        if not torch.compiler.is_compiling():
            self.feature_shape((images.shape[-2], images.shape[-1]))
            if not in_any_range:
                self._check_range(checked)
            for parameter in self.network.parameters():
                if parameter.requires_grad:  # to set it where it is set already, torch.func.grad would refuse
                    parameter.requires_grad_(False)
            if any(module.training for module in self.network.modules()):
                self.network.eval()
        elif self.network.training:
            self.network.eval()
        return self.normalise(checked)

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
            ShapeError: If the network gives no map of features, or its nodes cannot be fused.
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
        """SHA-256 over weights, buffers, node and preprocessing, in hexadecimal.

        It is computed whenever it is asked for (about 0.1 s for VGG19), so that no change of the weights goes unseen.
        The network's code, hooks and buffers that are not saved are not part of it. A cast to a narrower type does not
        change it; a cast back does, since the weights are rounded then.
        """
        now = self._compute_fingerprint()
        if self._before_cast is not None and self._before_cast[0] == now:
            return self._before_cast[1]
        return now

    @property
    def license(self) -> str | None:
        """Licence of the weights; "unknown" where the publisher names none, None for weights of one's own."""
        return self.provenance.license

    @property
    def config(self) -> dict[str, object]:
        """What finds this backbone again: plain values."""
        return {
            "name": self.provenance.name,
            "node": self.provenance.node,
            "weights": self.provenance.weights,
            **self.provenance.options,
            "fingerprint": self.fingerprint,
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenBackbone":
        old, new = self.mean.dtype, fn(self.mean.new_zeros(0)).dtype
        before = self.fingerprint if new != old else ""
        super()._apply(fn, recurse)
        if new == old:
            return self
        # A cast does not make another backbone, but one back from a narrower type does: the weights were rounded.
        is_kept = self._before_cast is None or torch.finfo(new).bits < torch.finfo(old).bits
        self._before_cast = (self._compute_fingerprint(), before) if is_kept else None
        return self

    def _check_range(self, images: Images) -> None:
        waits_in_training = images.device.type != "cpu" and self.training
        if not (waits_in_training and self._range_seen):
            try:
                check_image_range(images)
            except RuntimeError as error:
                if not str(error).startswith("vmap"):  # inside torch.func.vmap no value can be looked at
                    raise
            self._range_seen = True

    def _compute_fingerprint(self) -> str:
        digest = hashlib.sha256()
        preprocessing = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        spec = {"node": self.provenance.node, **self.provenance.options}
        digest.update(json.dumps({**spec, **preprocessing}, sort_keys=True).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @torch.no_grad()
    def _probe(self, size: Size) -> tuple[tuple[int, int, int] | None, str]:
        try:
            if isinstance(self.network, LayerFeatures) and not self._layouts_known:
                noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
                self.network.detect_layouts(noise.to(self.mean))
                self._layouts_known = True
            features = self.network(self.mean.new_zeros(1, 3, *size))
        except TransferVAEError:
            raise
        except NETWORK_ERRORS as error:
            if is_out_of_memory(error):
                raise
            return None, first_line(error)
        _, channels, height, width = features.shape
        if not height or not width:
            return None, "nothing is left of the image at this depth"
        return (channels, height, width), ""

    def _size_message(self, size: Size, reason: str) -> str:
        height, width = size
        return (
            f"{self.provenance.name} at {self.provenance.place} cannot take {height}x{width} images;"
            f" {self._advise(size)} ({reason})."
        )

    def _advise(self, size: Size) -> str:
        makes = self._takes_if_made_for
        if makes is not None and makes(size):
            condition = "" if self.provenance.weights is None else ", if timm can resample its weights"
            return f"it can be created for them with image_size={size}{condition}"
        native = self.provenance.native_size
        nearest = nearest_sizes(size, lambda other: self._probe(other)[0] is not None, native=native, tries=TRIES)
        made = []
        if makes is not None and nearest in ([], [native]):
            made = [
                other for other in nearest_sizes(size, makes, native=native, tries=TRIES_MADE) if [other] != nearest
            ]
        parts = [f"the nearest sizes that it takes: {name_sizes(nearest)}"] if nearest else []
        parts += [f"the nearest sizes that it can be created for: {name_sizes(made)}"] if made else []
        return "; ".join(parts) or "no size near it works"


def first_line(error: Exception) -> str:
    """What a network says when it cannot take a size, in one line without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error tells of too little memory rather than of the images."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _check_channels(name: str, values: object) -> None:
    numbers = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    is_fine = len(numbers) == 3 and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    if not is_fine or (name == "std" and min(numbers) <= 0):
        above = ", above 0" if name == "std" else ""
        raise InvalidOptionError(f"{name} must be three finite numbers{above}, one per RGB channel, got {values!r}.")
