"""Features of any network with named submodules, read by hooks."""

import math
from collections.abc import Callable
from contextlib import suppress
from operator import itemgetter
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from transfervae.backbones.reading import Reading
from transfervae.errors import ShapeError, UnknownNameError
from transfervae.shapes import Features, Images

MOST_PREFIX_TOKENS = 16
EXACT = 1e-6
"""Up to which difference a grid has the very ratio of the image: rounding of floats."""


class _Reached(Exception):  # noqa: N818 - it ends a forward pass and is no error
    """The last node has given its output."""


class OutputFeatures(nn.Module):
    """The output of a network, as a map."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network.

        Args:
            network: Gives a map with channels first or last, or tokens.
        """
        super().__init__()
        self.network = network

    def forward(self, images: Images) -> Features:
        """Map normalised images to features, `[b, c, h, w]`.

        Raises:
            ShapeError: If the output is no map of features.
        """
        size = (images.shape[-2], images.shape[-1])
        return as_map(self.network(images), size, network=self.network, node=type(self.network).__name__)


class ModuleFeatures(nn.Module):
    """The outputs of named submodules, as maps; the forward pass ends at the last of them.

    Outputs may be maps with channels first or last, or tokens with or without prefix tokens: the grid is the one whose
    ratio of sides is the image's. Of a submodule that is called several times, the first output counts.

    Attributes:
        network: The network.
        reading: The submodules' names, and how they are fused.
    """

    def __init__(self, network: nn.Module, reading: Reading) -> None:
        """Hook the submodules.

        Args:
            network: Any network; hooks are left in it.
            reading: Names of submodules, as `named_modules` gives them.

        Raises:
            UnknownNameError: If one does not exist.
        """
        super().__init__()
        self.network = network
        self.reading = reading
        self._outputs: dict[str, Any] = {}
        named = dict(network.named_modules())
        for node in reading.nodes:
            if node not in named or node == "":
                raise UnknownNameError("submodule", node, [name for name in named if name])
            named[str(node)].register_forward_hook(self._make_hook(str(node)))

    def forward(self, images: Images) -> Features:
        """Map normalised images to the fused features, `[b, c, h, w]`.

        Raises:
            ShapeError: If an output is no map of features.
        """
        self._outputs = {}
        with suppress(_Reached):
            self.network(images)
        outputs, self._outputs = self._outputs, {}
        missing = [str(node) for node in self.reading.nodes if node not in outputs]
        if missing:
            raise ShapeError(f"The forward pass never reaches {', '.join(missing)}.")
        size = (images.shape[-2], images.shape[-1])
        maps = [as_map(outputs[str(node)], size, network=self.network, node=str(node)) for node in self.reading.nodes]
        return self.reading.combine(maps)

    def _make_hook(self, node: str) -> Callable[[nn.Module, Any, Any], None]:
        def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if node in self._outputs:
                return
            # Layers that follow may work in place; none follows the last node.
            is_last = len(self._outputs) == len(self.reading.nodes) - 1
            self._outputs[node] = output if is_last or not isinstance(output, Tensor) else output.clone()
            if is_last:
                raise _Reached

        return take


def as_map(output: Any, image_size: tuple[int, int], *, network: nn.Module, node: str) -> Features:
    """Bring a layer's output to channels first, `[b, c, h, w]`.

    Args:
        output: A map with channels first or last, or tokens `[b, n, c]`.
        image_size: (height, width) of the images, whose ratio tells which axes are the grid.
        network: Where `output_fmt` and `num_prefix_tokens` decide what the shape leaves open.
        node: For the message.

    Raises:
        ShapeError: If the output is neither.
    """
    if isinstance(output, Tensor) and output.ndim == 4:
        return _channels_first(output, image_size, last=getattr(network, "output_fmt", None) == "NHWC")
    if isinstance(output, Tensor) and output.ndim == 3:
        cut = _token_grid(output.shape[1], image_size, declared=getattr(network, "num_prefix_tokens", None))
        if cut is not None:
            prefix, height, width = cut
            return rearrange(output[:, prefix:], "b (h w) c -> b c h w", h=height, w=width)
    given = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ShapeError(f"{node} gives no map of features: its output is {given}, for images {list(image_size)}.")


def _channels_first(output: Tensor, image_size: tuple[int, int], *, last: bool) -> Tensor:
    first_misfit, last_misfit = (
        abs(math.log(height / width * image_size[1] / image_size[0])) if height and width else math.inf
        for height, width in (output.shape[2:4], output.shape[1:3])
    )
    is_last = last if math.isclose(first_misfit, last_misfit) else last_misfit < first_misfit
    return rearrange(output, "b h w c -> b c h w") if is_last else output


def _token_grid(count: int, image_size: tuple[int, int], *, declared: int | None) -> tuple[int, int, int] | None:
    """Number of prefix tokens and the grid of the others: of the image's ratio of sides, if need be up to rounding."""
    ratio = image_size[0] / image_size[1]
    fits = []
    for prefix in range(MOST_PREFIX_TOKENS + 1) if declared is None else (declared, 0):
        cells = count - prefix
        height = round(math.sqrt(cells * ratio)) if cells > 0 else 0
        if height and cells % height == 0 and (misfit := abs(cells / height * ratio - height)) < 1:
            fits.append((misfit > EXACT, (prefix, height, cells // height)))
    return min(fits, key=itemgetter(0))[1] if fits else None
