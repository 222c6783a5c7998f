"""Commands that look at images by their latents: nearest, and outliers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from transfervae.cli.app import app, readable, say, screen
from transfervae.cli.arguments import Device, Model, SkipBad, Weights, check_suffix
from transfervae.cli.images import load, open_images
from transfervae.data import ImageFolder
from transfervae.errors import ImageFileError, InvalidOptionError
from transfervae.inference import encode_images
from transfervae.model import TransferVAE
from transfervae.pictures import ROW, write_grid
from transfervae.posteriors import Posterior
from transfervae.progress import progress_bar
from transfervae.shapes import unit_images

Images = Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)]
Count = Annotated[int, typer.Option("--count", "-n", help="Number of images.")]


@app.command()
def nearest(
    model: Model,
    image: Annotated[Path, typer.Argument(help="The image whose neighbours are looked for.", show_default=False)],
    images: Images,
    count: Count = ROW,
    out: Annotated[Path, typer.Option(help="The picture, a .png: the image, and its neighbours below.")] = Path(
        "nearest.png"
    ),
    skip_bad: SkipBad = False,
    weights: Weights = None,
    device: Device = "cpu",
) -> None:
    """Find the images that are most like one, by the distance of their latents' means.

    The image itself is left out if it is among them.

    Example: transfervae nearest runs/faces photos/anna.jpg photos
    """
    from transfervae.evaluation import nearest_images

    check_suffix(out, ".png")
    if not image.is_file():
        raise ImageFileError(f"There is no image {str(image)!r}.")
    vae = load(model, weights, device)
    open_images([image], vae, skip_bad=False, out=out)
    dataset = open_images(images, vae, skip_bad=skip_bad, out=out)
    others = [place for place, path in enumerate(dataset.paths) if os.path.realpath(path) != os.path.realpath(image)]
    if not others:
        raise InvalidOptionError("There is no other image than the one whose neighbours are looked for.")
    query = ImageFolder([image], vae.image_size, dtype=torch.uint8)
    wanted = encode_images(vae, query).mean.flatten(1)
    points = _encode(vae, dataset).mean.flatten(1)[others]
    places = nearest_images(points, wanted, count=count)[0].tolist()
    table = Table("neighbour", "distance")
    for place in places:
        distance = (points[place] - wanted[0]).norm().item()
        table.add_row(escape(readable(dataset.paths[others[place]])), f"{distance:.4g}")
    screen.print(table)
    _write(out, [unit_images(query[0][None]), *_rows(dataset, [others[place] for place in places])])


@app.command()
def outliers(
    model: Model,
    images: Images,
    count: Count = ROW,
    out: Annotated[Path, typer.Option(help="The picture, a .png.")] = Path("outliers.png"),
    skip_bad: SkipBad = False,
    weights: Weights = None,
    device: Device = "cpu",
) -> None:
    """Find the images whose latents are the least likely under the model's prior.

    Example: transfervae outliers runs/faces photos
    """
    from transfervae.evaluation import outliers as find_outliers

    check_suffix(out, ".png")
    vae = load(model, weights, device)
    dataset = open_images(images, vae, skip_bad=skip_bad, out=out)
    places, densities = find_outliers(vae, _encode(vae, dataset), count=count)
    table = Table("image", "log-density (nats)")
    for place, density in zip(places.tolist(), densities.tolist(), strict=True):
        table.add_row(escape(readable(dataset.paths[place])), f"{density:.4g}")
    screen.print(table)
    _write(out, _rows(dataset, places.tolist()))


def _encode(vae: TransferVAE, dataset: ImageFolder) -> Posterior:
    with progress_bar(screen, "encoding") as progress:
        return encode_images(vae, dataset, progress=lambda done: progress(done, len(dataset)))


def _rows(dataset: ImageFolder, places: Sequence[int]) -> list[Tensor]:
    """The images at places, in rows."""
    shown = [dataset[place] for place in places]
    return [unit_images(torch.stack(shown[first : first + ROW])) for first in range(0, len(shown), ROW)]


def _write(out: Path, rows: Sequence[Tensor]) -> None:
    write_grid(out, rows)
    say(f"written to {out}")
