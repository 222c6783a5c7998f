"""Files of a model: its parts by name and options, and the tensors of those that are trained."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from transfervae.backbones import FrozenBackbone, create_backbone
from transfervae.decoders import DECODERS
from transfervae.errors import (
    CheckpointError,
    FileWriteError,
    FingerprintMismatchError,
    TransferVAEError,
    UnknownNameError,
    WeightsUnavailableError,
)
from transfervae.files import (
    CONFIG_FILE,
    FORMAT,
    FORMAT_KEY,
    WEIGHTS_FILE,
    digest_tensors,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from transfervae.heads import HEADS
from transfervae.options import PartTable, plain
from transfervae.priors import PRIORS
from transfervae.scaling import LatentScaling
from transfervae.shapes import parse_image_size

NEW_WEIGHTS_FILE = f"{WEIGHTS_FILE}.new"
"""The tensors of a model that is being saved over another, until the configuration is written too."""

OWN = "own:"
"""Marks a part of your own in a configuration, before the name of its class."""


@runtime_checkable
class Saveable(Protocol):
    """A model as it is saved: `TransferVAE` is one."""

    backbone: FrozenBackbone
    head: nn.Module
    decoder: nn.Module
    prior: nn.Module
    scaling: LatentScaling | None
    image_size: tuple[int, int]

    def trainable_state(self) -> dict[str, Tensor]:
        """All tensors but the backbone's, by name."""

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `trainable_state` gave."""

    def eval(self) -> object:
        """Go to evaluation mode."""


Model = TypeVar("Model", bound=Saveable)
ModelOut_co = TypeVar("ModelOut_co", covariant=True)


@runtime_checkable
class Compose(Protocol[ModelOut_co]):
    """Composes a model of its parts: `TransferVAE` does."""

    def __call__(
        self,
        backbone: FrozenBackbone,
        head: nn.Module,
        decoder: nn.Module,
        *,
        prior: nn.Module | None,
        scaling: LatentScaling | None,
    ) -> ModelOut_co:
        """Compose a model."""


def save_model(vae: Saveable, folder: str | os.PathLike[str]) -> None:
    """Write a model to a folder; `TransferVAE.save_pretrained` describes it."""
    path = Path(folder)
    tensors = vae.trainable_state()
    odd = [name for name, value in tensors.items() if not isinstance(value, Tensor) or nn.parameter.is_lazy(value)]
    if odd:
        raise CheckpointError(f"{odd[0]} is no tensor with values yet, and so could not be loaded again.")
    config: dict[str, Any] = {
        "image_size": list(vae.image_size),
        "backbone": plain(vae.backbone.config),
        "head": describe_part(HEADS, vae.head),
        "decoder": describe_part(DECODERS, vae.decoder),
        "prior": describe_part(PRIORS, vae.prior),
    }
    if vae.scaling is not None:
        config["scaling"] = vae.scaling.config
    spoiled = [name for name, value in tensors.items() if not value.isfinite().all()]
    if spoiled:
        raise CheckpointError(f"{spoiled[0]} is not finite; a model with such weights gives no images.")
    # The tensors' file holds the configuration too, and the rename of the configuration is the moment at which the new
    # model takes the place of an old one: a process that is killed before or after it leaves one of the two, whole.
    new = path / NEW_WEIGHTS_FILE
    # Its digest of the tensors tells saves of equal parts apart.
    config = {FORMAT_KEY: FORMAT, **config, "tensors": digest_tensors(tensors)}
    _finish_earlier_save(path)
    write_tensors(new, tensors, plain=_as_text(config))
    write_json(path / CONFIG_FILE, config)
    _put_in_place(path)


def load_model(
    compose: Compose[Model],
    folder: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    backbone: FrozenBackbone | None = None,
    head: nn.Module | None = None,
    decoder: nn.Module | None = None,
    prior: nn.Module | None = None,
) -> Model:
    """Read a model from a folder and compose it of its parts; `TransferVAE.from_pretrained` describes the others."""
    path = Path(folder)
    config = _read_config(path)
    with _refusing(path):
        recipe = dict(config["backbone"])
        fingerprint = recipe.pop("fingerprint")
        missing = [key for key in ("name", "node", "weights") if key not in recipe]
        if missing:
            raise CheckpointError(f"the backbone's {missing[0]} is missing")
        if not isinstance(recipe["weights"], str | None) or not isinstance(fingerprint, str):
            raise CheckpointError("weights and fingerprint of the backbone must be text")
        size = parse_image_size(config["image_size"])
    tensors = _read_weights(path, config)
    try:
        frozen = backbone or _find_backbone(recipe, weights)
    except TransferVAEError:
        raise
    except (TypeError, ValueError, AttributeError, OSError) as error:
        raise CheckpointError(f"{str(path / CONFIG_FILE)!r} describes no backbone: {error}") from error
    if frozen.fingerprint != fingerprint:
        raise FingerprintMismatchError(_mismatch_message(path, recipe, fingerprint, frozen))
    with _refusing(path):
        features = frozen.feature_shape(size)
        _check_shapes(config, tensors, features, size)
        made = head or _build(HEADS, config["head"], features)
        latent_shape = made.latent_shape_for(features)  # type: ignore[operator]
        vae = compose(
            frozen,
            made,
            decoder or _build(DECODERS, config["decoder"], latent_shape, size),
            prior=prior or _build(PRIORS, config["prior"], latent_shape),
            scaling=LatentScaling.identity(**config["scaling"]) if "scaling" in config else None,
        )
    vae.load_trainable_state(tensors)
    vae.eval()
    return vae


def _check_shapes(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], features: tuple[int, int, int], size: tuple[int, int]
) -> None:
    """Compare the parts that a configuration describes with the tensors at hand, before any memory is taken for them.

    Raises:
        CheckpointError: If head or decoder have other shapes.
    """
    parts = {}
    if config["head"]["name"] in HEADS:
        parts["head"] = HEADS.build_empty(config["head"], features)
    if config["decoder"]["name"] in DECODERS and parts:
        parts["decoder"] = DECODERS.build_empty(config["decoder"], parts["head"].latent_shape_for(features), size)
    own = {f"{kind}.{name}": value for kind, part in parts.items() for name, value in part.state_dict().items()}
    misfits = [name for name, value in own.items() if name not in tensors or tensors[name].shape != value.shape]
    if misfits:
        raise CheckpointError(f"its tensors do not fit; {len(misfits)} differ, first {', '.join(misfits[:3])}")


def _finish_earlier_save(folder: Path) -> None:
    """Put tensors in place whose configuration is there already: a save was killed before it could."""
    if (folder / NEW_WEIGHTS_FILE).is_file():
        with suppress(CheckpointError):
            if read_tensors(folder / NEW_WEIGHTS_FILE).plain == _as_text(read_json(folder / CONFIG_FILE)):
                _put_in_place(folder)


def _put_in_place(folder: Path) -> None:
    try:
        (folder / NEW_WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)
    except OSError as error:
        raise FileWriteError(f"{str(folder / WEIGHTS_FILE)!r} cannot be written: {error.strerror}.") from error


def describe_part(table: PartTable, part: object) -> dict[str, Any]:
    """A part's name and options, as `PartTable.build` reads them; a part of one's own by its class."""
    spec = table.spec_of(part)
    return {"name": f"{OWN}{type(part).__name__}"} if spec is None else spec.to_dict()


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(f"There is no model folder {str(folder)!r}.")
    config = read_json(folder / CONFIG_FILE)
    if (folder / "model" / CONFIG_FILE).is_file():
        raise CheckpointError(f"{str(folder)!r} is the folder of a run; its model is in {str(folder / 'model')!r}.")
    if config.get(FORMAT_KEY) != FORMAT:
        raise CheckpointError(f"{str(folder / CONFIG_FILE)!r} was not written by this version of transfervae.")
    return config


def _read_weights(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that were saved with a configuration."""
    wanted = _as_text(config)
    stored = None
    if (folder / NEW_WEIGHTS_FILE).is_file():
        with suppress(CheckpointError):
            stored = read_tensors(folder / NEW_WEIGHTS_FILE)
    if stored is None or stored.plain != wanted:
        stored = read_tensors(folder / WEIGHTS_FILE)
    if stored.plain != wanted or config.get("tensors") != digest_tensors(stored.tensors):
        raise CheckpointError(
            f"{CONFIG_FILE} in {str(folder)!r} is not the one that was saved with {WEIGHTS_FILE}: it was edited,"
            " damaged, or copied from another model."
        )
    return stored.tensors


def _as_text(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def _build(table: PartTable, config: Mapping[str, Any], *context: Any) -> nn.Module:
    name = config["name"]
    if isinstance(name, str) and name.startswith(OWN):
        raise CheckpointError(
            f"its {table.kind} is {name.removeprefix(OWN)}, a part of your own; give it with"
            f" from_pretrained(folder, {table.kind}=...)"
        )
    if name not in table:
        raise UnknownNameError(table.kind, name, table)
    part: nn.Module = table.build(config, *context)
    return part


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn whatever a garbled configuration causes into one error that names it."""
    try:
        yield
    except (TransferVAEError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{str(folder / CONFIG_FILE)!r} describes no model: {error}") from error


def _find_backbone(recipe: Mapping[str, Any], weights: str | os.PathLike[str] | None) -> FrozenBackbone:
    options = dict(recipe)
    name, recorded = str(options.pop("name")), options.pop("weights")
    source = recorded if weights is None else weights
    if source not in (None, "default", name) and not Path(source).exists():
        raise WeightsUnavailableError(
            f"The weights of {name} are not in {str(source)!r}; say where they are with weights=PATH (--weights PATH)."
        )
    known = ("node", "fuse", "grid", "norm", "image_size")
    return create_backbone(name, weights=source, **{key: options[key] for key in known if key in options})


def _mismatch_message(path: Path, recipe: Mapping[str, Any], fingerprint: str, frozen: FrozenBackbone) -> str:
    return (
        f"The model in {str(path)!r} was trained on {recipe['name']} at {recipe['node']} with fingerprint"
        f" {fingerprint[:12]}, but this backbone is {frozen.provenance.name} at {frozen.provenance.place}"
        f" with {frozen.fingerprint[:12]}: other weights, node or preprocessing. Give the right file with weights=PATH."
    )
