"""Differentiable augmentation of a discriminator's images (Zhao et al. 2020): colour and translation."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from transfervae.shapes import Images

LARGEST_SHIFT = 0.125
"""Largest translation, as a fraction of a side."""


def augment(images: Images) -> Images:
    """Change brightness, saturation and contrast of each image, then shift it; draws are of the global generator.

    The ranges are the authors': brightness shifts by up to 0.5 on images in [-1, 1], which is 0.25 here; saturation is
    scaled by 0 to 2, contrast by 0.5 to 1.5. Translations are whole pixels, and zeros move in. Gradients flow through.

    Args:
        images: `[b, 3, h, w]`, in [0, 1].

    Returns:
        Images of the same shape, whose values may lie outside [0, 1].
    """
    return _shift(_scale_contrast(_scale_saturation(images + 0.5 * (_draw(images) - 0.5))))


def _scale_saturation(images: Tensor) -> Tensor:
    gray = images.mean(dim=1, keepdim=True)
    return gray + (images - gray) * 2 * _draw(images)


def _scale_contrast(images: Tensor) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (0.5 + _draw(images))


def _shift(images: Tensor) -> Tensor:
    count, channels, height, width = images.shape
    reach = [round(side * LARGEST_SHIFT) for side in (height, width)]
    tops, lefts = (torch.randint(0, 2 * size + 1, (count, 1), device=images.device) for size in reach)
    rows = tops + torch.arange(height, device=images.device)
    columns = lefts + torch.arange(width, device=images.device)
    padded = pad(images, (reach[1], reach[1], reach[0], reach[0]))
    items = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
    planes = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return padded[items, planes, rows[:, None, :, None], columns[:, None, None, :]]


def _draw(images: Tensor) -> Tensor:
    """One number in [0, 1) per image."""
    return torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
