"""What is checked of a run's arguments before anything is written."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from transfervae.errors import InvalidOptionError
from transfervae.model import TransferVAE, evaluation_mode
from transfervae.priors.prior import Prior

MAX_NAME = 255
"""Bytes of a name that file systems take."""


def checked_folder(out: str | os.PathLike[str]) -> Path:
    """The run's folder, if files can be written to it under that name.

    Raises:
        InvalidOptionError: If it has no name, or one that some of the libraries that write to it cannot use.
    """
    name = os.fspath(out)
    if not name or "\0" in name or name.encode(errors="ignore").decode() != name:
        raise InvalidOptionError(f"out must be the name of a folder, in Unicode, got {name!r}.")
    if any(len(os.fsencode(part)) > MAX_NAME for part in Path(name).parts):
        raise InvalidOptionError(f"out has a part that is longer than {MAX_NAME} bytes: {name[:40]!r}….")
    return Path(name)


def check_outside(folder: Path, data: object) -> None:
    """Make sure that a run's pictures do not lie among the images that are learned from.

    Raises:
        InvalidOptionError: If the run's folder is in a folder of images.
    """
    parts = data if isinstance(data, list | tuple) else [data]
    for part in parts:
        if isinstance(part, str | os.PathLike) and folder.resolve().is_relative_to(Path(part).resolve()):
            raise InvalidOptionError(
                f"The run's folder {str(folder)!r} is in the folder of images {str(part)!r}, and its pictures would be"
                " taken for images; choose another with --out."
            )


def check_given(callbacks: object, loggers: object, transform: object, monitor: object) -> None:
    """Check the kinds of what a run is given as objects.

    Raises:
        InvalidOptionError: Naming the first that is of another kind.
    """
    if not isinstance(callbacks, Sequence) or not all(isinstance(entry, pl.Callback) for entry in callbacks):
        raise InvalidOptionError(f"callbacks must be a list of Lightning callbacks, got {callbacks!r}.")
    if not isinstance(loggers, Sequence) or isinstance(loggers, str):
        raise InvalidOptionError(f"loggers must be a list of loggers, got {loggers!r}; write [{loggers!r}].")
    if transform is not None and not callable(transform):
        raise InvalidOptionError(f"transform must be a function of an image, got {transform!r}.")
    if not isinstance(monitor, str | None):
        raise InvalidOptionError(f"monitor must be the name of a figure, got {monitor!r}.")


def set_checkpointing(vae: TransferVAE, *, enabled: bool) -> None:
    """Let a decoder compute activations again in the backward pass, or keep them.

    Raises:
        InvalidOptionError: If it cannot.
    """
    decoder: Any = vae.decoder
    if hasattr(decoder, "gradient_checkpointing"):
        decoder.gradient_checkpointing = enabled
    elif enabled:
        raise InvalidOptionError(
            f"gradient_checkpointing is for the decoders vit and kl; {type(decoder).__name__} has no blocks to"
            " compute again."
        )


def check_samples(vae: TransferVAE) -> None:
    """Draw from the prior once, so that one that cannot is refused before a run rather than after it.

    Raises:
        InvalidOptionError: If the prior gives no latents, or the decoder no images in [0, 1].
    """
    kind = type(vae.prior).__name__
    with evaluation_mode(vae), torch.no_grad():
        try:
            latents = cast(Prior, vae.prior).sample(2, generator=torch.Generator(vae.device).manual_seed(0))
        except (AttributeError, TypeError, RuntimeError, ValueError) as error:
            raise InvalidOptionError(f"The prior {kind} gives no samples: {error}") from error
        expected = (2, *vae.latent_shape)
        if not isinstance(latents, Tensor) or tuple(latents.shape) != expected:
            given = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InvalidOptionError(f"The prior {kind} must give latents {list(expected)}, got {given}.")
        images = vae.decoder(torch.zeros_like(latents))
        kind = type(vae.decoder).__name__
        if not isinstance(images, Tensor) or tuple(images.shape) != (2, 3, *vae.image_size):
            answer: object = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InvalidOptionError(f"The decoder {kind} must give images {[2, 3, *vae.image_size]}, got {answer}.")
        if not 0 <= images.min() <= images.max() <= 1:
            raise InvalidOptionError(f"The decoder {kind} must give images in [0, 1]; end it with a sigmoid.")
