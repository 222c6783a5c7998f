"""The images that a run held out, found again from its folder."""

import os
from pathlib import Path
from typing import Any

import torch

from transfervae.data import SelectedImages, ToyFaces, open_dataset
from transfervae.errors import CheckpointError, RunFolderError
from transfervae.files import read_json
from transfervae.saving import OWN
from transfervae.shapes import check_seed, parse_image_size
from transfervae.training._config import make_group
from transfervae.training._images import RunImages
from transfervae.training._run_folder import RunFolder
from transfervae.training.options import DataOptions


def held_out_images(run: str | os.PathLike[str]) -> SelectedImages:
    """The images that a run held out: exactly those, or an error.

    Args:
        run: The run's folder.

    Raises:
        RunFolderError: If there is no run, its images have changed, or they came from a data set of your own.
        ImageFileError: If the run's images are gone.
    """
    folder = RunFolder(Path(run))
    config = folder.read_config()
    for name in ("data", "val_data"):
        if str(config.get(name)).startswith(OWN):
            raise RunFolderError(
                f"The run in {str(folder.root)!r} learnt from a data set of your own"
                f" ({str(config[name]).removeprefix(OWN)}); give the images to evaluate on."
            )
    try:
        size, seed = parse_image_size(config["image_size"]), int(config["seed"])
        check_seed(seed)
        reading = make_group(DataOptions, config["dataset"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{str(folder.config)!r} was edited or damaged: {error}") from error

    def opened(data: Any) -> Any:
        if data is None:
            return ToyFaces(reading.faces, size, seed=seed, dtype=torch.uint8)
        return open_dataset(data, size, skip_bad=reading.skip_bad)

    val = reading.val if config.get("val_data") is None else opened(config["val_data"])
    images = RunImages(opened(config.get("data")), val=val, batch_size=1, seed=seed, workers=0)
    folder.check_images(images.images_id)
    _check_same(folder, images)
    return SelectedImages(images.dataset, images.val)


def _check_same(folder: RunFolder, images: RunImages) -> None:
    """Make sure that the images are those that the run held out, by their names and their content."""
    names = folder.val_images.read_bytes() if folder.val_images.exists() else b""
    if names != "".join(f"{name}\n" for name in images.val_names()).encode(errors="surrogateescape"):
        raise RunFolderError(
            f"The images are not those that the run in {str(folder.root)!r} held out: {folder.val_images.name} names"
            " others."
        )
    if not folder.result.exists():
        raise RunFolderError(
            f"The run in {str(folder.root)!r} has not ended, and has noted no hash of its held-out images; finish it"
            " (--resume), or name images to evaluate on."
        )
    if read_json(folder.result).get("val_images_sha256") != images.val_digest():
        raise RunFolderError(
            f"The images that the run in {str(folder.root)!r} held out have changed since; name images to evaluate on."
        )


def history_of(run: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The figures of a run by epoch, as `metrics.csv` has them; none if there is no such file."""
    return RunFolder(Path(run)).read_history()
