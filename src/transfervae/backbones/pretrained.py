"""Sources of other libraries' models: a folder, the Hugging Face Hub, or memory."""

import os
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from transfervae.backbones._weights import read_weights, require_reachable
from transfervae.errors import CheckpointError, WeightsUnavailableError
from transfervae.files import read_json

CONFIG_FILE = "config.json"
INDEX_END = ".safetensors.index.json"
"""End of the name of the file that lists which shard holds which tensor."""

WEIGHTS_FILES = (
    "diffusion_pytorch_model.safetensors",
    f"diffusion_pytorch_model{INDEX_END}",
    "diffusion_pytorch_model.bin",
)
"""The names under which diffusers saves a model, in the order in which they are looked for."""

HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

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


class _Repository(NamedTuple):
    """A model on the Hub."""

    name: str
    revision: str | None
    subfolder: str

    def path(self, file: str) -> str:
        return f"{self.subfolder}/{file}" if self.subfolder else file


def read_pretrained(source: PretrainedSource, *, subfolder: str = "", revision: str | None = None) -> Pretrained:
    """Read a model as diffusers saves it: `config.json` beside safetensors, whole or in shards, or a torch file.

    Args:
        source: A folder; else a name "owner/name" or "owner/name@revision" on the Hugging Face Hub, whose cached files
            need no network; or (configuration, tensors), given as it is.
        subfolder: Where in the folder or repository the model is, such as "vae" in a whole pipeline.
        revision: Branch, tag or commit on the Hub; its main branch if None.

    Raises:
        CheckpointError: If there is no such folder, or if its files are missing, damaged or foreign.
        WeightsUnavailableError: If the files are neither in the Hub's cache nor to be fetched.
    """
    if isinstance(source, tuple):
        config, state = source
        return Pretrained(dict(config), dict(state))
    folder = Path(source)
    if folder.is_dir():
        return read_folder(folder / subfolder)
    repository = parse_hub_name(source, subfolder=subfolder, revision=revision)
    if repository is not None:
        return _read_hub(repository)
    raise CheckpointError(
        f"There is no folder {str(source)!r}; give a folder that holds {CONFIG_FILE} and {WEIGHTS_FILES[0]},"
        ' or a name "owner/name" on the Hugging Face Hub.'
    )


def read_folder(path: Path) -> Pretrained:
    """Read a model from its folder, or from the file with its tensors, whose `config.json` lies beside.

    Raises:
        CheckpointError: If a file is missing, damaged or foreign.
    """
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / CONFIG_FILE)
    files = [folder / name for name in WEIGHTS_FILES] if path.is_dir() else [path]
    found = next((file for file in files if file.is_file()), None)
    if found is None and path.is_dir():
        raise CheckpointError(f"There is neither {' nor '.join(WEIGHTS_FILES)} in {str(folder)!r}.")
    shards = {file.name: file for file in folder.glob("*.safetensors")}
    return Pretrained(config, _read_tensors(found or path, shards.get))


def parse_hub_name(source: object, *, subfolder: str = "", revision: str | None = None) -> _Repository | None:
    """A model's place on the Hub; None for what is no name there."""
    match = HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    return None if match is None else _Repository(match["name"], revision or match["revision"], subfolder)


def cached_file(repository: _Repository, file: str) -> Path | None:
    """A file of a repository in the Hub's cache, if it is there.

    Raises:
        CheckpointError: If the Hub knows no such names.
    """
    hub = import_module("huggingface_hub")
    try:
        path = hub.try_to_load_from_cache(repository.name, repository.path(file), revision=repository.revision)
    except hub.errors.HFValidationError as error:
        message = f"{repository.name!r} is neither a folder nor a name on the Hugging Face Hub: {error}"
        raise CheckpointError(message) from error
    return Path(path) if isinstance(path, str) else None


def _list_shards(index: Path) -> dict[str, list[str]]:
    """Tensors by the file that holds them.

    Raises:
        CheckpointError: If the index is none, or names files outside its folder.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{str(index)!r} is no index of a model in shards.")
    shards: dict[str, list[str]] = {}
    for tensor, file in places.items():
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{str(index)!r} names {file!r}, which is no safetensors file beside it.")
        shards.setdefault(file, []).append(tensor)
    return shards


def _read_tensors(file: Path, find_shard: Callable[[str], Path | None]) -> dict[str, Tensor]:
    """The tensors of a weights file, or of all the shards that an index names."""
    if not file.name.endswith(INDEX_END):
        return read_weights(file)
    shards = _list_shards(file)
    paths = {shard: path for shard in shards if (path := find_shard(shard)) is not None}
    absent = [shard for shard in shards if shard not in paths]
    if absent:
        raise CheckpointError(f"There is no {absent[0]} beside {str(file)!r}, which names it.")
    state: dict[str, Tensor] = {}
    for shard, path in paths.items():
        held = read_weights(path)
        missing = [name for name in shards[shard] if name not in held]
        if missing:
            raise CheckpointError(f"{str(path)!r} lacks {missing[0]}, which the model's index says it holds.")
        state |= {name: held[name] for name in shards[shard]}
    return state


def _read_hub(repository: _Repository) -> Pretrained:
    name = repository.name
    config = _find(repository, CONFIG_FILE)
    if config is None:
        raise CheckpointError(f"{name!r} on the Hub holds no {repository.path(CONFIG_FILE)}; is it in a subfolder?")
    # The cache is asked for all of them first: a file that it has is no reason to ask the network for another.
    cached = (cached_file(repository, file) for file in WEIGHTS_FILES)
    fetched = (_find(repository, file) for file in WEIGHTS_FILES)
    weights = next(filter(None, chain(cached, fetched)), None)
    if weights is None:
        raise CheckpointError(f"{name!r} on the Hub holds neither {' nor '.join(WEIGHTS_FILES)}.")
    return Pretrained(read_json(config), _read_tensors(weights, lambda shard: _find(repository, shard)))


def _find(repository: _Repository, file: str) -> Path | None:
    """A file of a repository, from the cache or else the network; None if the repository does not hold it."""
    cached = cached_file(repository, file)
    if cached is not None:
        return cached
    name, path = repository.name, repository.path(file)
    hub = import_module("huggingface_hub")
    _require_hub(hub, name, path)
    try:
        return Path(hub.hf_hub_download(name, path, revision=repository.revision))
    except hub.errors.LocalEntryNotFoundError as error:
        raise _unavailable(name, path, str(error)) from error
    except hub.errors.EntryNotFoundError:
        return None
    except Exception as error:  # its HTTP client, and so what it raises, differs between versions
        raise _unavailable(name, path, str(error)) from error


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
