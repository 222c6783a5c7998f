"""The exception tree: every error that TransferVAE raises on purpose derives from `TransferVAEError`."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any


class TransferVAEError(Exception):
    """Base of all errors raised by this library."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle class and message alone: some constructors compose the message of other arguments."""
        return _restore, (type(self), self.args)


class InvalidOptionError(TransferVAEError, ValueError):
    """An option has a value that cannot work."""


class InvalidImageError(TransferVAEError, ValueError):
    """A tensor is no batch of RGB images in [0, 1]."""


class ImageSizeError(InvalidImageError):
    """Images have a size that the network or the model cannot take."""


class ShapeError(TransferVAEError, ValueError):
    """Features or latents have another shape than the block was built for."""


class UnknownNameError(TransferVAEError, ValueError):
    """A backbone, node, decoder or other named thing does not exist."""

    def __init__(self, kind: str, given: object, known: Iterable[object], *, hint: str = "") -> None:
        """Compose the message.

        Args:
            kind: What was looked for, for example "decoder".
            given: The name that was given.
            known: The names that exist; the nearest is suggested, and all are listed when they are few.
            hint: A closing sentence for where to look further.
        """
        names = [str(name) for name in known]
        nearest = get_close_matches(str(given), names, n=1, cutoff=0.6)
        parts = [f"Unknown {kind} {str(given)!r}."]
        if nearest:
            parts.append(f"Did you mean {nearest[0]!r}?")
        if names and len(names) <= 24:
            parts.append(f"Known: {', '.join(names)}.")
        if hint:
            parts.append(hint)
        super().__init__(" ".join(parts))


class UnknownOptionError(TransferVAEError, ValueError):
    """A part has no option of that name."""

    def __init__(self, owner: str, given: object, known: Iterable[object]) -> None:
        """Compose the message.

        Args:
            owner: Whose option was looked for, for example "head 'gaussian'".
            given: The name that was given.
            known: The names that exist; the nearest is suggested.
        """
        names = [str(name) for name in known]
        nearest = get_close_matches(str(given), names, n=1, cutoff=0.6)
        suggestion = f" Did you mean {nearest[0]!r}?" if nearest else ""
        options = f" Its options: {', '.join(names)}." if names else " It has no options."
        super().__init__(f"{owner} has no option {str(given)!r}.{suggestion}{options}")


class UnsupportedBackboneError(TransferVAEError, ValueError):
    """A network gives no features that can be read as a map."""


class WeightsUnavailableError(TransferVAEError, OSError):
    """Pretrained weights are neither on this machine nor to be fetched."""


class WeightsMismatchError(TransferVAEError, ValueError):
    """A weights file does not fit the network: names or shapes differ."""


class FingerprintMismatchError(TransferVAEError, ValueError):
    """The backbone at hand is not the one that a saved model was trained on."""


class DivergedError(TransferVAEError, ArithmeticError):
    """The objective of a training run is no longer finite."""


class CheckpointError(TransferVAEError, OSError):
    """A saved model or checkpoint is missing, damaged or foreign."""


class CacheError(TransferVAEError, OSError):
    """A feature cache is missing, incomplete, damaged or foreign."""


class CacheInUseError(CacheError):
    """Another process is building a feature cache in the same folder."""


class CacheMismatchError(TransferVAEError, ValueError):
    """A feature cache is of another backbone, node, size, preprocessing or data set than the one at hand."""


class FeatureValueError(TransferVAEError, ValueError):
    """Features are not finite, or beyond what they are to be stored as."""


class ImageFileError(TransferVAEError, OSError):
    """An image file cannot be read, or a folder holds none."""


class FileWriteError(TransferVAEError, OSError):
    """A file cannot be written, for example because the disk is full; what was there before is still there."""


class RunFolderError(TransferVAEError, OSError):
    """A run's output folder cannot be used as asked."""


class MissingExtraError(TransferVAEError, ImportError):
    """A feature needs packages that an optional extra installs."""

    def __init__(self, purpose: str, extra: str) -> None:
        """Compose the message.

        Args:
            purpose: What cannot be done without the extra, capitalised.
            extra: The name of the extra.
        """
        super().__init__(f"{purpose} needs the extra {extra!r}: pip install 'transfervae[{extra}]'")


def _restore(kind: type[TransferVAEError], args: tuple[Any, ...]) -> TransferVAEError:
    error = kind.__new__(kind)
    error.args = args
    return error
