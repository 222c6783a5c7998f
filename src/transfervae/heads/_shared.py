"""Shared code of heads: checks of shapes, a bounded log-variance, layers in float32, small initial weights."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from transfervae.errors import ShapeError

LOGVAR_BOUND = 10.0
"""log-variances stay within ±10: standard deviations from 0.0067 to 148."""

REFERENCE_INPUTS = 2048
"""Largest number of inputs of a layer that are not scaled down."""

INITIAL_KL = 10.0
"""Upper limit of the expected KL of a latent vector at the first step, in nats."""


def bound_logvar(values: Tensor) -> Tensor:
    """Bound log-variances smoothly to ±`LOGVAR_BOUND`; the slope is 1 at 0 and falls only with 1/x^2."""
    scale = 2 * LOGVAR_BOUND / math.pi
    return scale * torch.atan(values / scale)


def full_precision(values: Tensor) -> AbstractContextManager[object]:
    """A context without autocast; the meta device knows none."""
    device = values.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def apply_linear(layer: nn.Linear | nn.Conv2d, values: Tensor) -> Tensor:
    """Apply a linear layer to `[b, n]`, or a 1x1 convolution to `[b, c, h, w]`, in the dtype of the values.

    Inputs are scaled by `input_gain` first.
    """
    values = input_gain(layer) * values
    weight = layer.weight.to(values.dtype)
    bias = None if layer.bias is None else layer.bias.to(values.dtype)
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(values, weight, bias)
    return nn.functional.conv2d(values, weight, bias)


def input_gain(layer: nn.Linear | nn.Conv2d) -> float:
    """What a layer's inputs are multiplied by: min(1, 2048 / n) for n of them.

    Adam changes every weight by about its learning rate, whatever the gradient's size, which moves an output in
    proportion to n: with the tens of thousands of features that several nodes give, a step would throw the means far
    out. The gain makes a step's effect that of 2048 inputs (the scaling of Yang & Hu 2021 for adaptive optimisers).
    """
    return min(1.0, REFERENCE_INPUTS / layer.weight[0].numel())


def initialise_moments(mean: nn.Linear | nn.Conv2d, logvar: nn.Linear | nn.Conv2d, kl_per_dimension: float) -> None:
    """Start the two parallel layers so that the expected KL at the first step is `kl_per_dimension` a latent dimension.

    Weights of the mean become N(0, s^2 / (n g^2)) for n inputs of gain g, the log-variance 0 everywhere. For inputs
    whose mean square is 1 a latent dimension's mean is then N(0, s^2) over initial weights, and its KL (mean^2 +
    variance - 1 - log variance) / 2 is s^2 / 2 in expectation.
    """
    inputs = mean.weight[0].numel()
    nn.init.normal_(mean.weight, std=math.sqrt(2 * kl_per_dimension / inputs) / input_gain(mean))
    for values in (mean.bias, logvar.weight, logvar.bias):
        if values is not None:
            nn.init.zeros_(values)


def vector_kl_per_dimension(latent_dim: int) -> float:
    """Expected KL at the first step of each of a vector's d dimensions: min(d / 8, 10) / d nats."""
    return min(latent_dim / 8, INITIAL_KL) / latent_dim


def check_feature_shape(feature_shape: Sequence[int]) -> tuple[int, int, int]:
    """Check that a shape is (c, h, w).

    Raises:
        ShapeError: If it has not three axes of at least 1.
    """
    if len(feature_shape) != 3 or min(feature_shape) < 1:
        raise ShapeError(f"feature_shape must be (c, h, w), each at least 1, got {tuple(feature_shape)}.")
    channels, height, width = feature_shape
    return channels, height, width


def check_channels(expected: int, feature_shape: Sequence[int]) -> tuple[int, int, int]:
    """Check that a shape is (c, h, w) with the c that a head was built for.

    Raises:
        ShapeError: If it is not.
    """
    channels, height, width = check_feature_shape(feature_shape)
    if channels != expected:
        raise ShapeError(f"The head was built for features of {expected} channels, got {channels}.")
    return channels, height, width
