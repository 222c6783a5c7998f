"""A report as one HTML file that opens offline, and its pictures as PNGs."""

import base64
import html
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from transfervae.data import ImageDataset, open_dataset
from transfervae.errors import CheckpointError, InvalidOptionError, MissingExtraError, RunFolderError
from transfervae.evaluation.report import Report
from transfervae.files import write_atomically
from transfervae.model import TransferVAE, evaluation_mode
from transfervae.pictures import write_pairs
from transfervae.shapes import unit_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8
"""Images in each row of examples."""

CHOICES = ("best", "median", "worst")

FILES = (
    "report.json",
    "report.html",
    *(f"{choice}.png" for choice in CHOICES),
    *("errors.png", "error_map.png", "frequencies.png", "parts.png"),
)
"""Names of the files that a report writes; the last one only with errors by part."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
img { max-width: 100%; image-rendering: pixelated } table { border-collapse: collapse; margin: .5rem 0 }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .8rem; text-align: left } td.n { text-align: right;
font-variant-numeric: tabular-nums } .verdict { background: #fff4e0; border-left: 4px solid #e8a33d;
padding: .4rem .8rem; margin: .3rem 0 } code { overflow-wrap: anywhere }
.protocol td.n { text-align: left } .names { color: #666; font-size: .8rem; overflow-wrap: anywhere }
.plots { display: flex; flex-wrap: wrap; gap: 1rem }
.plots img { max-width: 32rem; image-rendering: auto }
"""

NAMES = {
    "rmse": "RMSE",
    "draw_rmse": "RMSE of a draw",
    "l1": "absolute error",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "chroma": "error of colour",
    "kl": "KL (nats)",
    "rate": "rate (bits per pixel)",
    "information": "information in the latent (nats, at most)",
    "active_units": "active units",
    "fd": "Frechet distance of features",
    "kd": "kernel distance of features",
    "ms_ssim": "MS-SSIM",
    "lpips": "LPIPS",
    "fid": "FID",
    "kid": "KID",
    "nll": "negative log-likelihood (nats per image)",
    "mutual_information": "mutual information (nats, at most ln of the images)",
    "nearest_class": "nearest neighbour of the same class",
    "linear_probe": "linear probe of classes",
    "features_nearest_class": "nearest neighbour, backbone's features",
    "features_linear_probe": "linear probe, backbone's features",
    "chance": "largest class",
    "dci_disentanglement": "DCI disentanglement",
    "dci_completeness": "DCI completeness",
    "dci_informativeness": "DCI informativeness",
    "mig": "mutual information gap (MIG)",
}
"""Figures by the names that people know them by."""


def write_report(folder: str | os.PathLike[str], report: Report, vae: TransferVAE, data: Any) -> None:
    """Write `report.json`, `report.html` and the pictures in it.

    Args:
        folder: Made if missing.
        report: From `evaluate`.
        vae: The model that it is about.
        data: The images that it was measured on.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        FileWriteError: If a file cannot be written.
    """
    out = Path(folder)
    images = open_dataset(data, vae.image_size, verify=False)
    if len(images) != len(report.images) or any(
        images.name_of(place) != entry.name for place, entry in enumerate(report.images)
    ):
        raise InvalidOptionError("The report is about other images than these.")
    earlier = check_report_folder(out)
    if earlier is not None:  # a page of other figures than the report's is not left, whatever interrupts this
        (out / "report.html").unlink(missing_ok=True)
    report.write(out / "report.json")
    examples = choose_examples(report)
    for choice, indices in examples.items():
        _write_examples(out / f"{choice}.png", vae, images, indices)
    plots = {"errors.png": _draw_histogram(report), "error_map.png": _draw_map(report)}
    plots["frequencies.png"] = _draw_frequencies(report)
    if report.parts:
        plots["parts.png"] = _draw_parts(report)
    elif earlier is not None and earlier.parts:
        (out / "parts.png").unlink(missing_ok=True)  # the earlier report wrote it
    for name, figure in plots.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        write_atomically(out / name, buffer.getvalue())
    write_atomically(out / "report.html", _page(report, out, examples, list(plots)).encode(errors="backslashreplace"))


def check_report_folder(folder: str | os.PathLike[str]) -> Report | None:
    """Make sure that a report replaces nothing but an earlier report.

    Args:
        folder: Where the report is to be written.

    Returns:
        The earlier report, if there is one.

    Raises:
        RunFolderError: If the folder holds files or links by the names that a report writes, and no report wrote them.
    """
    out = Path(folder)
    earlier = None
    with suppress(CheckpointError):
        earlier = Report.read(out / "report.json")
    written = () if earlier is None else FILES if earlier.parts else FILES[:-1]
    found = [
        name for name in FILES if os.path.lexists(out / name) and (name not in written or (out / name).is_symlink())
    ]
    if found:
        raise RunFolderError(
            f"{str(out)!r} holds {found[0]!r}, which no report has left there and this one would replace; choose"
            " another folder."
        )
    return earlier


def choose_examples(report: Report) -> dict[str, list[int]]:
    """Places of the images with the smallest, middle and largest errors."""
    order = sorted(range(len(report.images)), key=lambda place: report.images[place].rmse)
    middle = max(0, len(order) // 2 - SHOWN // 2)
    return dict(zip(CHOICES, (order[:SHOWN], order[middle : middle + SHOWN], order[-SHOWN:][::-1]), strict=True))


def figure_rows(figures: Mapping[str, float]) -> list[tuple[str, str]]:
    """Figures in the words and digits that they are shown with."""
    return [(NAMES.get(name, name), f"{value:.4g}") for name, value in figures.items()]


def _write_examples(path: Path, vae: TransferVAE, images: ImageDataset, indices: Sequence[int]) -> None:
    originals = unit_images(torch.stack([images[index] for index in indices]))
    with evaluation_mode(vae), torch.no_grad():
        write_pairs(path, originals, vae.reconstruct(originals.to(vae.device)).cpu())


def _page(report: Report, folder: Path, examples: Mapping[str, Sequence[int]], plots: Sequence[str]) -> str:
    protocol = [(name, f"<code>{html.escape(str(value))}</code>") for name, value in report.protocol.items()]
    baseline = [("RMSE of the mean of these images", f"{report.baseline['rmse']:.4g}")]
    baseline += [("error of colour of the mean image", f"{report.baseline['chroma']:.4g}")]
    parts = [
        "<!doctype html><meta charset=utf-8><title>Evaluation</title>",
        f"<style>{STYLE}</style><h1>Evaluation</h1>",
        f"<p>{report.protocol['images']} images, {report.protocol['backbone']['name']}</p>",
        *(f"<p class=verdict>{html.escape(verdict)}</p>" for verdict in report.verdicts),
        _table([*figure_rows(report.figures), *baseline]),
    ]
    for name, places in examples.items():
        shown = ", ".join(
            html.escape(f"{report.images[place].name} ({report.images[place].rmse:.3f})") for place in places
        )
        parts.append(f"<h2>{name.capitalize()}</h2><p>Originals above their reconstructions.</p>")
        parts.append(f"{_embedded(folder / f'{name}.png')}<p class=names>{shown}</p>")
    parts.append(f"<h2>Errors</h2><div class=plots>{''.join(_embedded(folder / name) for name in plots)}</div>")
    if report.parts:
        header = ("part", "share of pixels", "RMSE", "contrast", "share of the mean image's error removed", "95 %")
        rows = [
            (
                html.escape(name),
                *(f"{value:.3f}" for value in part[:4]),
                f"{part.low:.3f} to {part.high:.3f}",
            )
            for name, part in report.parts.items()
        ]
        parts.append(f"<h2>By part</h2>{_table(rows, header)}")
    if report.classes:
        counts = Counter(entry.label for entry in report.images)
        rows = [(html.escape(name), str(counts[name]), f"{value:.4f}") for name, value in report.classes.items()]
        parts.append(f"<h2>By class</h2>{_table(rows, ('class', 'images', 'RMSE'))}")
    parts.append(f"<h2>Protocol</h2><div class=protocol>{_table(protocol)}</div>")
    return "\n".join(parts)


def _table(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    head = f"<tr>{''.join(f'<th>{html.escape(name)}' for name in header)}" if header else ""
    body = "".join(f"<tr><td>{first}{''.join(f'<td class=n>{cell}' for cell in rest)}" for first, *rest in rows)
    return f"<table>{head}{body}</table>"


def _embedded(path: Path) -> str:
    return f'<img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _draw_histogram(report: Report) -> "Figure":
    figure, axes = _figure()
    axes.hist([entry.rmse for entry in report.images], bins=30, color="#6a8caf")
    axes.axvline(report.baseline["rmse"], color="#c0504d", label="mean image")
    axes.set_xlabel("RMSE")
    axes.set_ylabel("images")
    axes.legend(frameon=False)
    return figure


def _draw_map(report: Report) -> "Figure":
    figure, axes = _figure()
    picture = axes.imshow(report.error_map, cmap="magma", vmin=0)
    axes.set_title("mean absolute error by pixel")
    axes.axis("off")
    figure.colorbar(picture)
    return figure


def _draw_frequencies(report: Report) -> "Figure":
    figure, axes = _figure()
    axes.plot(range(len(report.frequencies)), report.frequencies, color="#6a8caf")
    axes.axhline(1, color="#c0504d", label="nothing is reconstructed")
    axes.set_xlabel("spatial frequency (waves per side)")
    axes.set_ylabel("energy of the error / of the image")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _draw_parts(report: Report) -> "Figure":
    figure, axes = _figure()
    ordered = sorted(report.parts.items(), key=lambda entry: entry[1].removed)
    for place, (_name, part) in enumerate(ordered):
        axes.barh(place, part.removed, color="#6a8caf")
        axes.plot([part.low, part.high], [place, place], color="#222")
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
    axes.axvline(0, color="#c0504d")
    axes.set_xlabel("share of the mean image's squared error removed")
    return figure


def _figure() -> tuple["Figure", Any]:
    try:
        module = import_module("matplotlib.figure")
    except ImportError:
        raise MissingExtraError("Drawing", "train") from None
    figure: Figure = module.Figure(figsize=(5, 3.4), dpi=110, layout="constrained")
    return figure, figure.subplots()
