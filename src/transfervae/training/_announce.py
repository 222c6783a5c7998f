"""Messages of a run before it begins."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from transfervae.backbones import license_remark, resolve_backbone_name
from transfervae.data import ImageDataset
from transfervae.model import TransferVAE
from transfervae.options import Spec
from transfervae.training._images import RunImages


def choose_auto_backbone(model: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """The arguments of a model with its backbone "auto" resolved; the reason for a second choice is printed."""
    spec = Spec.parse(model["backbone"], "backbone")
    name, reason = resolve_backbone_name(spec.name, spec.options.get("weights", "default"))
    if reason:
        console.print(f"[yellow]{escape(reason)}[/]", soft_wrap=True, highlight=False)
        console.print(f"[yellow]This run uses the backbone {name!r} instead.[/]")
    return {**model, "backbone": Spec(name, **spec.options)}


def describe_images(console: Console, images: RunImages, vae: TransferVAE) -> None:
    """Print how many images there are, and what backbone."""
    bad = images.dataset.bad
    skipped = f" ({len(bad)} unreadable files skipped)" if bad else ""
    console.print(f"{len(images.training)} images to train on, {len(images.val)} held out{skipped}")
    describe_backbone_of(console, images.dataset, vae)


def describe_backbone_of(console: Console, dataset: ImageDataset, vae: TransferVAE) -> None:
    """Print skipped files, the backbone with its licence, and a warning if it is not pretrained."""
    for reason in dataset.bad.values():
        console.print(f"[yellow]skipped:[/] {escape(reason)}", soft_wrap=True, highlight=False)
    if dataset.is_told_by_pixels and not dataset.is_random:
        console.print("the data set has no files: it is told from others by the pixels of some of its images")
    origin = vae.backbone.provenance
    console.print(f"backbone {origin.name} at {origin.place}, licence of its weights: {_name_license(origin.license)}")
    if origin.weights is None:
        message = f"[yellow]warning:[/] {origin.name} is not pretrained: its weights are random (weights none)"
        console.print(message, soft_wrap=True)


def _name_license(name: str | None) -> str:
    remark = license_remark(name)
    return (name or "none") + (f" [yellow]({remark})[/]" if remark and remark != name else "")
