"""Where other libraries' models are read from: a folder, the Hugging Face Hub, or memory."""

import os
import re
from collections.abc import Mapping
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from transfervae.backbones.rae import CONFIG_FILE, WEIGHTS_FILES
from transfervae.backbones.weights import read_weights, require_reachable
from transfervae.checkpoint import read_json
from transfervae.errors import CheckpointError, WeightsUnavailableError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

PretrainedSource: TypeAlias = str | os.PathLike[str] | tuple[Mapping[str, Any], Mapping[str, Tensor]]
"""A folder, a name "owner/name" on the Hub, or a configuration with its tensors."""


class Pretrained(NamedTuple):
    """A model of another library.

    Attributes:
        config: Its configuration, plain values.
        state: Its tensors by name, on the CPU.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]


def read_pretrained(source: PretrainedSource, *, subfolder: str = "") -> Pretrained:
    """Read a model as diffusers saves it: `config.json` beside a safetensors file, or a torch file with plain tensors.

    Args:
        source: A folder; else a name "owner/name" on the Hugging Face Hub, whose cached files need no network; or
            (configuration, tensors), given as it is.
        subfolder: Where in the folder or repository the model is, such as "vae" in a whole pipeline.

    Raises:
        CheckpointError: If there is no such folder, or if its files are missing, damaged or foreign.
        WeightsUnavailableError: If the files are neither in the Hub's cache nor to be fetched.
    """
    if isinstance(source, tuple):
        config, state = source
        return Pretrained(dict(config), dict(state))
    folder = Path(source)
    if folder.is_dir():
        return _read_folder(folder / subfolder)
    if isinstance(source, str) and HUB_NAME.fullmatch(source):
        return _read_hub(source, subfolder)
    raise CheckpointError(
        f"There is no folder {str(source)!r}; give a folder that holds {CONFIG_FILE} and {WEIGHTS_FILES[0]},"
        ' or a name "owner/name" on the Hugging Face Hub.'
    )


def _read_folder(folder: Path) -> Pretrained:
    config = read_json(folder / CONFIG_FILE)
    for file in (folder / name for name in WEIGHTS_FILES):
        if file.is_file():
            return Pretrained(config, read_weights(file))
    raise CheckpointError(f"There is neither {' nor '.join(WEIGHTS_FILES)} in {str(folder)!r}.")


def _read_hub(name: str, subfolder: str) -> Pretrained:
    config = _find(name, subfolder, CONFIG_FILE)
    if config is None:
        raise CheckpointError(f"{name!r} on the Hub holds no {_join(subfolder, CONFIG_FILE)}; is it in a subfolder?")
    # The cache is asked for all of them first: a file that it has is no reason to ask the network for another.
    cached = (_find_cached(name, _join(subfolder, file)) for file in WEIGHTS_FILES)
    fetched = (_find(name, subfolder, file) for file in WEIGHTS_FILES)
    weights = next(filter(None, chain(cached, fetched)), None)
    if weights is None:
        raise CheckpointError(f"{name!r} on the Hub holds neither {' nor '.join(WEIGHTS_FILES)}.")
    return Pretrained(read_json(config), read_weights(weights))


def _find(name: str, subfolder: str, file: str) -> Path | None:
    """A file of a repository, from the cache or else the network; None if the repository does not hold it."""
    file = _join(subfolder, file)
    cached = _find_cached(name, file)
    if cached is not None:
        return cached
    hub = import_module("huggingface_hub")
    _require_hub(hub, name, file)
    try:
        return Path(hub.hf_hub_download(name, file))
    except hub.errors.LocalEntryNotFoundError as error:
        raise _unavailable(name, file, str(error)) from error
    except hub.errors.EntryNotFoundError:
        return None
    except Exception as error:  # its HTTP client, and so what it raises, differs between versions
        raise _unavailable(name, file, str(error)) from error


def _find_cached(name: str, file: str) -> Path | None:
    hub = import_module("huggingface_hub")
    try:
        path = hub.try_to_load_from_cache(name, file)
    except hub.errors.HFValidationError as error:
        raise CheckpointError(f"{name!r} is neither a folder nor a name on the Hugging Face Hub: {error}") from error
    return Path(path) if isinstance(path, str) else None


def _require_hub(hub: Any, name: str, file: str) -> None:
    constants = hub.constants
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(name, file, "HF_HUB_OFFLINE is set")
    folder = Path(constants.HF_HUB_CACHE)
    try:
        require_reachable(constants.ENDPOINT, owner=name, file=file, folder=folder)
    except WeightsUnavailableError:
        raise _unavailable(name, file, f"{constants.ENDPOINT} cannot be reached") from None


def _unavailable(name: str, file: str, reason: str) -> WeightsUnavailableError:
    reason = reason.strip().partition("\n")[0].rstrip(".")
    return WeightsUnavailableError(
        f"{file} of {name!r} is not in the Hub's cache and cannot be fetched: {reason}."
        " Download the model where there is a network, and give its folder instead of the name."
    )


def _join(subfolder: str, file: str) -> str:
    return f"{subfolder}/{file}" if subfolder else file
