"""The images that a run held out, found again from its folder."""

import os
from pathlib import Path
from typing import Any

import torch

from transfervae.data import SelectedImages, ToyFaces, open_dataset
from transfervae.errors import RunFolderError
from transfervae.saving import OWN
from transfervae.training._images import RunImages
from transfervae.training._run_folder import RunFolder


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
    size, reading = tuple(config["image_size"]), config["dataset"]
    skip_bad = bool(reading.get("skip_bad"))

    def opened(data: Any) -> Any:
        if data is None:
            return ToyFaces(reading["faces"], size, seed=config["seed"], dtype=torch.uint8)
        return open_dataset(data, size, skip_bad=skip_bad)

    val = reading["val"] if config.get("val_data") is None else opened(config["val_data"])
    images = RunImages(opened(config.get("data")), val=val, batch_size=1, seed=config["seed"], workers=0)
    folder.check_images(images.images_id)
    return SelectedImages(images.dataset, images.val)


def history_of(run: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The figures of a run by epoch, as `metrics.csv` has them; none if there is no such file."""
    return RunFolder(Path(run)).read_history()
