"""Commands that run a trained model on images: reconstruct, sample, encode."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from transfervae.cli.app import app, readable, say, screen
from transfervae.cli.arguments import Device, Model, SkipBad, Weights, check_suffix, parse_weights
from transfervae.data import ImageFolder
from transfervae.errors import InvalidOptionError
from transfervae.inference import encode_images, reconstruct_images, write_latents
from transfervae.losses import rmse
from transfervae.model import TransferVAE
from transfervae.pictures import write_grid, write_pairs, write_samples
from transfervae.progress import progress_bar


@app.command()
def reconstruct(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="A .png for originals above reconstructions; else a folder for one file an image.")
    ] = Path("reconstructions.png"),
    skip_bad: SkipBad = False,
    weights: Weights = None,
    device: Device = "cpu",
) -> None:
    """Reconstruct images with a trained model, and print each one's error.

    Images are scaled and centre-cut to the model's size.
    """
    check_suffix(out, ".png", "")
    vae = load(model, weights, device)
    dataset = open_images(images, vae, skip_bad=skip_bad, out=out)
    pairs = reconstruct_images(vae, dataset)
    if out.suffix == ".png":
        write_pairs(out, *pairs)
    else:
        for number, (path, image) in enumerate(zip(dataset.paths, pairs[1], strict=True)):
            write_grid(out / f"{number:04d}_{path.stem}.png", [image.unsqueeze(0)])
    table = Table("image", "RMSE")
    for path, error in zip(dataset.paths, rmse(*pairs).tolist(), strict=True):
        table.add_row(escape(readable(path)), f"{error:.4f}")
    screen.print(table)
    say(f"{_describe_cut(vae)}; written to {out}")


@app.command()
def sample(
    model: Model,
    count: Annotated[int, typer.Option("--count", "-n", help="Number of images.")] = 16,
    out: Annotated[Path, typer.Option(help="The picture, a .png.")] = Path("samples.png"),
    seed: Annotated[int, typer.Option(help="Which images are drawn.")] = 0,
    weights: Weights = None,
    device: Device = "cpu",
) -> None:
    """Draw new images from the prior of a trained model."""
    check_suffix(out, ".png")
    vae = load(model, weights, device)
    write_samples(out, vae, count=count, seed=seed)
    say(f"{count} samples written to {out}")


@app.command()
def encode(
    model: Model,
    data: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The file, an .npz.")] = Path("latents.npz"),
    skip_bad: SkipBad = False,
    weights: Weights = None,
    device: Device = "cpu",
) -> None:
    """Encode images to latents: an .npz with the arrays paths, mean and logvar (natural logarithm of the variance).

    A model with a deterministic head has no logvar.
    """
    check_suffix(out, ".npz")
    vae = load(model, weights, device)
    dataset = open_images(data, vae, skip_bad=skip_bad)
    with progress_bar(screen, "encoding") as progress:
        posterior = encode_images(vae, dataset, progress=lambda done: progress(done, len(dataset)))
    write_latents(out, dataset.paths, posterior)
    shape = " x ".join(map(str, posterior.mean.shape))
    what = " and ".join({"mean": "means", "logvar": "log-variances"}[name] for name in posterior.moments())
    say(f"{_describe_cut(vae)}; {what} ({shape}) written to {out}")


def load(folder: Path, weights: str | None, device: str) -> TransferVAE:
    """Read the model in a folder, or in a run's folder.

    Raises:
        InvalidOptionError: If the device cannot be used.
        CheckpointError: If there is no model.
    """
    if device.startswith("meta"):
        raise InvalidOptionError("The device 'meta' cannot be used: it computes nothing.")
    weights = None if weights is None else parse_weights(weights)
    inner = folder / "model"
    vae = TransferVAE.from_pretrained(inner if inner.is_dir() else folder, weights=weights)
    try:
        return vae.to(device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidOptionError(f"The device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def open_images(paths: Sequence[Path], vae: TransferVAE, *, skip_bad: bool, out: Path | None = None) -> ImageFolder:
    """Images of the model's size; those that were skipped are named.

    Args:
        paths: Files and folders.
        vae: The model.
        skip_bad: Leave unreadable files out.
        out: The file that is to be written, which must be none of them.

    Raises:
        InvalidOptionError: If it is.
        ImageFileError: If files cannot be read.
    """
    dataset = ImageFolder(paths, vae.image_size, dtype=torch.uint8, skip_bad=skip_bad)
    if out is not None and os.path.realpath(out) in map(os.path.realpath, dataset.paths):
        raise InvalidOptionError(f"--out {str(out)!r} is one of the images, and would be replaced; choose another.")
    for reason in dataset.bad.values():
        screen.print(f"[yellow]skipped:[/] {escape(reason)}", soft_wrap=True, highlight=False)
    if dataset.bad:
        screen.print(f"{len(dataset.bad)} unreadable files skipped")
    return dataset


def _describe_cut(vae: TransferVAE) -> str:
    return f"images scaled and centre-cut to {vae.image_size[0]}x{vae.image_size[1]}"
