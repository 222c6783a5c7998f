"""Checks of feature shapes."""

from collections.abc import Sequence

from transfervae.errors import ShapeError


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
