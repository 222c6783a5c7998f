"""Pictures: image grids, loss curves, and the architecture, written as PNG."""

import io
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from transfervae.errors import FeatureValueError, MissingExtraError
from transfervae.files import write_atomically
from transfervae.model import TransferVAE, evaluation_mode
from transfervae.shapes import Images, check_seed
from transfervae.summary import PartSummary, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP = 2
ROW = 8
"""Images in a row."""
SMALLEST_TILE = 64

FROZEN_COLOR = "#9db8d6"
TRAINABLE_COLOR = "#f0b27a"
DATA_COLOR = "#eeeeee"


def write_grid(path: str | os.PathLike[str], rows: Sequence[Tensor]) -> None:
    """Write images as a PNG, one row a batch; small ones are enlarged by a whole factor.

    Args:
        path: The file.
        rows: Batches `[b, 3, h, w]` in [0, 1] of one image size.

    Raises:
        FileWriteError: If the file cannot be written.
    """
    height, width = rows[0].shape[-2:]
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = GAP + y * (height + GAP), GAP + x * (width + GAP)
            sheet[top : top + height, left : left + width] = _to_pixels(image)
    picture = Image.fromarray(sheet)
    factor = -(-SMALLEST_TILE * 2 // min(height, width))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomically(Path(path), buffer.getvalue())


def write_pairs(path: str | os.PathLike[str], originals: Images, reconstructions: Images) -> None:
    """Write originals above their reconstructions as a PNG, in rows of eight.

    Args:
        path: The file.
        originals: `[b, 3, h, w]` in [0, 1].
        reconstructions: As many, in [0, 1].

    Raises:
        FileWriteError: If the file cannot be written.
    """
    pairs = zip(originals.split(ROW), reconstructions.split(ROW), strict=True)
    write_grid(path, [row for pair in pairs for row in pair])


def write_reconstructions(path: str | os.PathLike[str], vae: TransferVAE, images: Images) -> None:
    """Write images above what a model makes of them as a PNG.

    Args:
        path: The file.
        vae: The model; it is left in the mode that it was in.
        images: `[b, 3, h, w]` in [0, 1].

    Raises:
        FileWriteError: If the file cannot be written.
    """
    with evaluation_mode(vae), torch.no_grad():
        write_pairs(path, images, vae.reconstruct(images.to(vae.device)).cpu())


def write_samples(path: str | os.PathLike[str], vae: TransferVAE, *, count: int = 2 * ROW, seed: int = 0) -> None:
    """Write draws from a model's prior as a PNG, in rows of eight.

    Args:
        path: The file.
        vae: The model; it is left in the mode that it was in.
        count: Number of draws, at least 1.
        seed: Which draws.

    Raises:
        InvalidOptionError: If `count` is below 1, or `seed` negative.
        FileWriteError: If the file cannot be written.
    """
    check_seed(seed)
    generator = torch.Generator(vae.device).manual_seed(seed)
    with evaluation_mode(vae), torch.no_grad():
        images = vae.sample(count, generator=generator).cpu()
    write_grid(path, images.split(ROW))


def write_history(path: str | os.PathLike[str], rows: Sequence[Mapping[str, float]]) -> None:
    """Write the objective and its terms over epochs as a PNG.

    Args:
        path: The file.
        rows: One mapping an epoch, with "epoch", and "loss" and "term/NAME" as "train/..." and "val/...".

    Raises:
        MissingExtraError: If matplotlib is not installed.
        FileWriteError: If the file cannot be written.
    """
    curves = [name.removeprefix("val/") for name in rows[0] if name.startswith(("val/loss", "val/term/"))]
    figure = _figure(4 * len(curves), 3.4)
    epochs = [row["epoch"] for row in rows]
    splits = {"train": ("o--", "training"), "val": ("o-", "held out")}
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for split, (style, name) in splits.items():
            axes.plot(epochs, [row[f"{split}/{curve}"] for row in rows], style, markersize=3, label=name)
        axes.set_title("objective" if curve == "loss" else curve.removeprefix("term/"))
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    _write_figure(path, figure)


def write_quality(path: str | os.PathLike[str], points: Mapping[str, tuple[float, tuple[float, float]]]) -> None:
    """Write models' errors against the seconds that they took as a PNG.

    Args:
        path: The file.
        points: By name: seconds, and RMSE with its standard deviation.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        FileWriteError: If the file cannot be written.
    """
    figure = _figure(6.4, 4.2)
    axes = figure.subplots()
    for name, (seconds, (error, spread)) in points.items():
        axes.errorbar(seconds, error, yerr=spread, fmt="o", capsize=3, label=name)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("held-out RMSE")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    _write_figure(path, figure)


def write_architecture(path: str | os.PathLike[str], vae: TransferVAE) -> None:
    """Draw a model with its shapes and parameter counts, frozen and trainable parts told apart, as a PNG.

    Args:
        path: The file.
        vae: The model; it is left in the mode that it was in.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        FileWriteError: If the file cannot be written.
    """
    boxes = _boxes(vae)
    figure = _figure(1.75 * len(boxes), 4.4)
    axes = figure.subplots()
    for place, box in enumerate(boxes):
        _draw_box(axes, place, **box)
    for place in range(len(boxes) - 1):
        axes.annotate(
            "", (place + 0.6, 0), (place + 0.4, 0), arrowprops={"arrowstyle": "->", "color": "#555555", "lw": 1.4}
        )
    axes.set_xlim(-0.6, len(boxes) - 0.4)
    axes.set_ylim(-1.6, 1.5)
    axes.axis("off")
    axes.set_title(_title(vae), fontsize=11)
    _draw_legend(axes)
    _write_figure(path, figure)


def _boxes(vae: TransferVAE) -> list[dict[str, Any]]:
    parts = summarise(vae)
    source = vae.backbone.provenance
    height = max(vae.image_size)
    image = {"label": "images", "shape": (3, *vae.image_size), "color": DATA_COLOR, "size": 1.0, "count": ""}
    boxes = [image]
    for part in parts:
        spatial = max(part.output_shape[1:], default=0)
        color = FROZEN_COLOR if part.frozen else TRAINABLE_COLOR
        label = part.name
        if part.name == "backbone":
            label = f"{source.name}\n{source.place}"
        elif part.name == "head":
            label = getattr(vae.head, "output_label", "mean | log-variance")
        size = 1.0 if part.name == "backbone" else 0.25 + 0.75 * spatial / height
        boxes.append({"label": label, "shape": part.output_shape, "color": color, "size": size, "count": _count(part)})
    return boxes


def _draw_box(
    axes: "Axes", place: int, *, label: str, shape: tuple[int, ...], color: str, size: float, count: str
) -> None:
    patches = import_module("matplotlib.patches")
    axes.add_patch(
        patches.FancyBboxPatch(
            (place - 0.36, -size), 0.72, 2 * size, boxstyle="round,pad=0,rounding_size=0.06", fc=color, ec="#444444"
        )
    )
    axes.text(place, 0.0, label.replace(" ", "\n"), ha="center", va="center", fontsize=9)
    axes.text(place, -1.12, " x ".join(map(str, shape)), ha="center", va="top", fontsize=9, family="monospace")
    axes.text(place, -1.28, count, ha="center", va="top", fontsize=8, color="#444444")


def _draw_legend(axes: "Axes") -> None:
    patches = import_module("matplotlib.patches")
    kinds = (("frozen", FROZEN_COLOR), ("trainable", TRAINABLE_COLOR))
    handles = [patches.Patch(facecolor=color, edgecolor="#444444", label=name) for name, color in kinds]
    axes.legend(handles=handles, loc="lower center", ncols=2, frameon=False, bbox_to_anchor=(0.5, -0.08))


def _title(vae: TransferVAE) -> str:
    trainable = sum(parameter.numel() for parameter in vae.trainable_parameters())
    frozen = sum(parameter.numel() for parameter in vae.backbone.parameters())
    return f"{shorten(trainable)} trainable parameters, {shorten(frozen)} frozen"


def _count(part: PartSummary) -> str:
    return f"{shorten(part.trainable + part.frozen)} parameters"


def shorten(number: float) -> str:
    """A count with three digits and a unit: 20024384 is "20.0M"."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"


def _to_pixels(image: Float[Tensor, "3 h w"]) -> Any:
    if image.isnan().any():
        raise FeatureValueError("The image to be written holds NaN: the weights or the precision of its model are bad.")
    return (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _figure(width: float, height: float) -> "Figure":
    try:
        module = import_module("matplotlib.figure")
    except ImportError:
        raise MissingExtraError("Drawing", "train") from None
    figure: Figure = module.Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure


def _write_figure(path: str | os.PathLike[str], figure: "Figure") -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(Path(path), buffer.getvalue())
