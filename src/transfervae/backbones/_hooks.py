"""Features of any network with named submodules, read by hooks."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from transfervae.backbones._token_layout import TokenLayout, as_map
from transfervae.backbones.feature_spec import FeatureSpec
from transfervae.errors import ShapeError, UnknownNameError, UnsupportedBackboneError
from transfervae.shapes import Features, Images

CLEAN_SIZE = (224, 224)
"""A size that most patches and strides divide, so that layouts show without rounding."""


class _Reached(Exception):  # noqa: N818 - it ends a forward pass and is no error
    """The last node has given its output."""


class LayerFeatures(nn.Module):
    """Outputs of layers, whatever their layout, as one map; `detect_layouts` finds the layouts out.

    Attributes:
        network: The network.
        spec: The nodes, and how they are fused.
    """

    def __init__(self, network: nn.Module, spec: FeatureSpec, *, layout: TokenLayout | None = None) -> None:
        """Wrap a network.

        Args:
            network: Gives maps with channels first or last, or tokens.
            spec: Names of the nodes.
            layout: Of all nodes; what the network declares if None.
        """
        super().__init__()
        self.network = network
        self.spec = spec
        self._layouts = [layout or TokenLayout.declared_by(network)] * len(spec.nodes)

    def forward(self, images: Images) -> Features:
        """Map normalised images to the fused features, `[b, c, h, w]`.

        Raises:
            ShapeError: If an output is no map of features.
        """
        return self.spec.combine(self.maps(images))

    def maps(self, images: Images) -> list[Tensor]:
        """The features of each node, `[b, c, h, w]` each; images and errors as in `forward`."""
        size = (images.shape[-2], images.shape[-1])
        read = zip(self.outputs(images), self._layouts, self.spec.nodes, strict=True)
        return [as_map(output, size, layout=layout, node=str(node)) for output, layout, node in read]

    def outputs(self, images: Images) -> Sequence[Any]:
        """What the nodes give for normalised images, as it is."""
        return [self.network(images)]

    @torch.no_grad()
    def detect_layouts(self, images: Images) -> None:
        """Find out by experiment how the nodes lay their features out, where the network takes several sizes.

        Args:
            images: Normalised, of a size that the network takes.

        Raises:
            UnsupportedBackboneError: If the network gives other features for the same images, or changes itself.
        """
        if all(layout.is_certain for layout in self._layouts):
            return
        self._check_repeatable(images)
        for height, width in (CLEAN_SIZE, images.shape[-2:]):
            try:
                trials = [
                    self.outputs(images.new_zeros(1, 3, *size))
                    for size in ((height, width), (height, 2 * width), (2 * height, width))
                ]
            except (RuntimeError, AssertionError, ValueError, IndexError, TypeError):
                continue  # it does not take these sizes
            self._layouts = [
                layout.observed(*seen, image_size=(height, width))
                for layout, *seen in zip(self._layouts, *trials, strict=True)
            ]
            return

    def _check_repeatable(self, images: Images) -> None:
        before = {name: value.clone() for name, value in self.network.named_buffers()}
        first, second = self.outputs(images), self.outputs(images)
        changed = [name for name, value in self.network.named_buffers() if not torch.equal(value, before[name])]
        if changed:
            raise UnsupportedBackboneError(
                f"{type(self.network).__name__} cannot be frozen: its forward pass changes the buffer {changed[0]}."
            )
        pairs = [pair for pair in zip(first, second, strict=True) if all(isinstance(value, Tensor) for value in pair)]
        if not all(torch.equal(one, other) for one, other in pairs):
            raise UnsupportedBackboneError(
                f"{type(self.network).__name__} cannot be frozen: it gives other features for the same images."
            )


class ModuleFeatures(LayerFeatures):
    """The outputs of named submodules; the forward pass ends at the last of them.

    Of a submodule that is called several times, the first output counts.
    """

    def __init__(self, network: nn.Module, spec: FeatureSpec, *, layout: TokenLayout | None = None) -> None:
        """Hook the submodules.

        Args:
            network: Any network; hooks are left in it.
            spec: Names of submodules, as `named_modules` gives them.
            layout: Of all of them; what the network declares if None.

        Raises:
            UnknownNameError: If one does not exist.
        """
        super().__init__(network, spec, layout=layout)
        self._taken: dict[str, Any] = {}
        named = dict(network.named_modules())
        for node in spec.nodes:
            if node not in named or node == "":
                raise UnknownNameError("submodule", node, [name for name in named if name])
            named[str(node)].register_forward_hook(self._make_hook(str(node)))

    def outputs(self, images: Images) -> Sequence[Any]:
        """What the submodules give for normalised images, as it is.

        Raises:
            ShapeError: If the forward pass does not reach one.
        """
        self._taken = {}
        with suppress(_Reached):
            self.network(images)
        taken, self._taken = self._taken, {}
        missing = [str(node) for node in self.spec.nodes if node not in taken]
        if missing:
            raise ShapeError(f"The forward pass never reaches {', '.join(missing)}.")
        return [taken[str(node)] for node in self.spec.nodes]

    def _make_hook(self, node: str) -> Callable[[nn.Module, Any, Any], None]:
        def take(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if node in self._taken:
                return
            # Layers that follow may work in place; none follows the last node.
            is_last = len(self._taken) == len(self.spec.nodes) - 1
            self._taken[node] = output if is_last or not isinstance(output, Tensor) else output.clone()
            if is_last:
                raise _Reached

        return take
