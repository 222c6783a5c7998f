"""What a run begins with: weights of a saved model, and which parts stay as they are."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from transfervae.errors import CheckpointError, InvalidOptionError, UnknownNameError
from transfervae.files import CONFIG_FILE, read_json, read_tensors
from transfervae.model import TransferVAE
from transfervae.objectives import Objective
from transfervae.training._config import MODEL_KEYS, describe_model
from transfervae.training._run_folder import OBJECTIVE_FILE

FREEZABLE = ("head", "decoder")


def model_folder(source: str | os.PathLike[str]) -> Path:
    """The folder of a saved model: the one that is given, or that of the run in it.

    Raises:
        CheckpointError: If there is none.
    """
    folder = Path(source)
    inner = folder / "model"
    found = inner if (inner / CONFIG_FILE).is_file() else folder
    if not (found / CONFIG_FILE).is_file():
        raise CheckpointError(f"There is no saved model in {str(folder)!r}: {CONFIG_FILE} is missing.")
    return found


def read_model_options(source: str | os.PathLike[str]) -> dict[str, Any]:
    """The arguments of `build_vae` that a saved model was built with.

    Raises:
        CheckpointError: If there is no model.
    """
    config = read_json(model_folder(source) / CONFIG_FILE)
    options = {name: config[name] for name in MODEL_KEYS if name in config}
    if isinstance(options.get("backbone"), dict):
        options["backbone"] = {name: value for name, value in options["backbone"].items() if name != "fingerprint"}
    return options


def load_initial_model(vae: TransferVAE, source: str | os.PathLike[str]) -> TransferVAE:
    """The saved model, with the backbone and the parts of one's own that a new one has.

    Raises:
        InvalidOptionError: If the new one has other parts than the saved one.
        TransferVAEError: If it cannot be read, as `TransferVAE.from_pretrained`.
    """
    wanted, saved = describe_model(vae), read_model_options(source)
    for kind in ("image_size", "head", "decoder"):
        if kind in saved and wanted[kind] != saved[kind]:
            raise InvalidOptionError(
                f"The model in {str(source)!r} has {kind} {saved[kind]}, and this run {wanted[kind]}; leave out"
                " head, decoder and image_size, which the saved model decides."
            )
    own = {kind: getattr(vae, kind) for kind in ("head", "decoder", "prior") if wanted[kind]["name"].startswith("own:")}
    loaded = TransferVAE.from_pretrained(model_folder(source), backbone=vae.backbone, **own)
    loaded.train()
    return loaded


def load_initial_objective(objective: Objective, source: str | os.PathLike[str]) -> bool:
    """Load what the terms of a saved run had learnt, such as a discriminator; False if it left none.

    Args:
        objective: After `attach`; terms of which the file holds nothing stay new.
        source: A run's folder, or that of its model.

    Raises:
        CheckpointError: If the file is damaged, or its tensors are those of another network.
    """
    folder = model_folder(source)
    path = next(
        (place / OBJECTIVE_FILE for place in (folder.parent, folder) if (place / OBJECTIVE_FILE).is_file()), None
    )
    if path is None or not objective.state_dict():
        return False
    stored, own = read_tensors(path).tensors, objective.state_dict()
    for name in objective.term_names():
        prefix = f"terms.{name}."
        if not any(key.startswith(prefix) for key in stored):
            continue
        misfits = _misfits(
            {key: value for key, value in own.items() if key.startswith(prefix)},
            {key: value for key, value in stored.items() if key.startswith(prefix)},
        )
        if misfits:
            raise CheckpointError(
                f"{str(path)!r} holds another {name} than this run's: {len(misfits)} tensors differ, first"
                f" {misfits[0].removeprefix(prefix)}. Give the term the options that it had, or move the file away."
            )
        own |= {key: value for key, value in stored.items() if key.startswith(prefix)}
    objective.load_state_dict(own)
    return True


def freeze(vae: TransferVAE, parts: Sequence[str]) -> None:
    """Let parts of a model stay as they are.

    Raises:
        UnknownNameError: For anything else than head and decoder.
        InvalidOptionError: If nothing is left to train.
    """
    for name in parts:
        if name not in FREEZABLE:
            raise UnknownNameError("part to freeze", name, FREEZABLE)
        part: nn.Module = getattr(vae, name)
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in vae.trainable_parameters()):
        raise InvalidOptionError(f"Nothing is left to train with freeze={list(parts)}.")


def _misfits(own: dict[str, Tensor], stored: dict[str, Tensor]) -> list[str]:
    missing = sorted(own.keys() ^ stored.keys())
    return missing + [name for name in own if name in stored and own[name].shape != stored[name].shape]
