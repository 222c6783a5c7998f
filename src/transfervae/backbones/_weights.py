"""Pretrained weights: found, fetched and loaded without running code from files and without silent misfits."""

import http.client
import os
import pickle
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from transfervae.errors import CheckpointError, WeightsMismatchError, WeightsUnavailableError

REACH_SECONDS = 6.0
MISFITS_NAMED = 3
BACKBONE_ADVICE = "give one with weights=PATH; the backbone 'packaged' needs no download."

WRAPPINGS = ("state_dict", "model")
"""Keys that checkpoints keep their tensors under, beside an optimiser's state and so on."""

UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
)
"""What safetensors and torch raise for files that are damaged or hold something else."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a .pth file with `weights_only=True`.

    Args:
        path: The file.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds no state dict, or values that are not finite.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"There is no weights file {str(file)!r}.")
    try:
        if file.suffix == ".safetensors":
            return _check_state(load_file(file), file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{str(file)!r} cannot be read as weights: it is damaged or holds more than tensors, and what would run"
            " code is never loaded."
        ) from error
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{str(file)!r} cannot be read as weights: {reason}") from error
    for wrapping in WRAPPINGS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapping), Mapping):
            state = state[wrapping]
    return _check_state(state, file)


def _check_state(state: object, file: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{str(file)!r} holds no state dict (tensors by name).")
    if not state:
        raise CheckpointError(f"{str(file)!r} holds no tensors.")
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{str(file)!r} is spoiled: {name} holds values that are not finite.")
    return dict(state)


def fetch_weights(url: str, *, owner: str, advice: str = BACKBONE_ADVICE) -> dict[str, Tensor]:
    """Read weights from torch's cache, fetching them once a machine if they are not there.

    Args:
        url: Where they are published.
        owner: Whose weights they are, for the message.
        advice: What else can be done, for the message.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        WeightsUnavailableError: If they are not in the cache and the server does not answer within seconds.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urlsplit(url).path).name
    if not file.exists():
        require_reachable(url, owner=owner, file=file.name, folder=folder, advice=advice)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):
            if not file.exists():
                _download(url, file, owner=owner)
    return read_weights(file)


def require_reachable(url: str, *, owner: str, file: str, folder: Path, advice: str = BACKBONE_ADVICE) -> None:
    """Make sure within seconds that a server answers.

    The request runs in a thread of its own, because looking a name up cannot be timed out.

    Raises:
        WeightsUnavailableError: If it does not; the file, the place it is looked for, and the way out are named.
    """
    answers = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - https addresses of publishers
            with urllib.request.urlopen(request, timeout=REACH_SECONDS):  # noqa: S310
                answers.set()
        except (OSError, urllib.error.URLError, ValueError):
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if not answers.is_set():
        host = urlsplit(url).netloc
        raise WeightsUnavailableError(
            f"{owner}'s weights ({file}) are not in {folder}, and {host} cannot be reached."
            f" Put the file there, or {advice}"
        )


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], *, owner: str) -> None:
    """Load a state dict all or nothing.

    Raises:
        WeightsMismatchError: If names or shapes differ; the first three misfits are named and nothing is loaded.
    """
    check_fit(network.state_dict(), state, owner=owner)
    network.load_state_dict(dict(state))


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, owner: str) -> None:
    """Check that a state dict has the names, shapes and kinds of numbers of a network's own.

    Raises:
        WeightsMismatchError: If not; the first three misfits are named.
    """
    misfits = [f"{name} is missing" for name in own if name not in state]
    misfits += [f"{name} is not expected" for name in state if name not in own]
    misfits += [
        f"{name} is {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    misfits += [
        f"{name} is {state[name].dtype} instead of {own[name].dtype}"
        for name in own
        if name in state and state[name].is_floating_point() != own[name].is_floating_point()
    ]
    if misfits:
        raise WeightsMismatchError(describe_misfits(owner, misfits))


def describe_misfits(owner: str, misfits: list[str]) -> str:
    """One line that names the first misfits and counts the others."""
    rest = f", and {len(misfits) - MISFITS_NAMED} more" if len(misfits) > MISFITS_NAMED else ""
    return f"The weights do not fit {owner}: {'; '.join(misfits[:MISFITS_NAMED])}{rest}."


def _download(url: str, file: Path, *, owner: str) -> None:
    """Fetch a file whole, checked against the start of its SHA-256, which torch's files carry in their names."""
    try:
        torch.hub.download_url_to_file(url, str(file), hash_prefix=file.stem.rpartition("-")[2])
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise WeightsUnavailableError(f"{owner}'s weights cannot be fetched from {url}: {error}") from error
