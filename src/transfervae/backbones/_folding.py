"""Batch normalisation of frozen networks, folded into the convolutions before it: the same features in less time."""

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from transfervae.backbones.frozen import DEFAULT_SIZE, FrozenBackbone

TOLERANCE = 1e-3
"""Largest difference of the folded network's features, relative to their root mean square."""


@torch.no_grad()
def fold_normalisation(backbone: FrozenBackbone) -> FrozenBackbone:
    """A copy of a backbone without batch normalisation where a convolution stands right before it.

    In evaluation mode such a layer scales and shifts its input, which the convolution's weights can do themselves.
    Pairs are found by what flows through the network. If the copy's features differ, the backbone itself is returned.

    Args:
        backbone: Stays as it is.

    Returns:
        The copy, with another fingerprint; the backbone itself if there is nothing to fold.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in backbone.network.modules()):
        return backbone
    size = backbone.provenance.native_size or DEFAULT_SIZE
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(backbone.mean)
    folded = copy.deepcopy(backbone)
    pairs = _find_pairs(folded, images)
    if not pairs:
        return backbone
    names = {module: name for name, module in folded.network.named_modules()}
    for convolution, normalisation in pairs:
        _fold(convolution, normalisation)
        # timm's normalisations also apply an activation
        folded.network.set_submodule(names[normalisation], getattr(normalisation, "act", nn.Identity()))
    for before, after in zip(backbone.maps(images), folded.maps(images), strict=True):
        if (before - after).square().mean().sqrt() > TOLERANCE * before.square().mean().sqrt():
            return backbone
    return folded


def _find_pairs(backbone: FrozenBackbone, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions, and the normalisations whose input is their output itself; each of them runs once."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, output)  # kept, so that no other tensor gets its identity
        elif isinstance(module, nn.BatchNorm2d) and id(given[0]) in made:
            pairs.append((made[id(given[0])][0], module))

    backbone.feature_shape(images.shape[2:])  # which runs the network once for each new size
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [module.register_forward_hook(note) for module in backbone.network.modules() if isinstance(module, kinds)]
    backbone.maps(images)
    for hook in hooks:
        hook.remove()
    return [pair for pair in pairs if all(calls[module] == 1 for module in pair) and pair[1].track_running_stats]


def _fold(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> None:
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        cast(Tensor, normalisation.running_mean),
        cast(Tensor, normalisation.running_var),
        normalisation.eps,
        normalisation.weight,
        normalisation.bias,
    )
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(bias, requires_grad=False)
