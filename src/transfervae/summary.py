"""What a model is made of: shapes, parameters and cost, part by part."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from transfervae.model import TransferVAE, evaluation_mode
from transfervae.posteriors import Posterior


@dataclass(frozen=True)
class PartSummary:
    """One part of a model.

    Attributes:
        name: For example "backbone" or "decoder stage 1".
        output_shape: Shape of its output for one image, without the batch axis.
        trainable: Number of trainable parameters.
        frozen: Number of frozen parameters.
        flops: Floating-point operations of the forward pass for one image (a multiply-add counts as two).
    """

    name: str
    output_shape: tuple[int, ...]
    trainable: int
    frozen: int
    flops: int


def summarise(vae: TransferVAE) -> list[PartSummary]:
    """Run one image through a model and list its parts in order.

    Args:
        vae: The model; it is left as it was.

    Returns:
        One entry for the backbone, one for the head, and one for each child of the decoder.
    """
    parts = _parts(vae)
    shapes: dict[str, tuple[int, ...]] = {}
    flops: dict[str, int] = {}
    image = torch.full((1, 3, *vae.image_size), 0.5, device=vae.device)
    counter = FlopCounterMode(display=False)
    with evaluation_mode(vae), _recording(parts, counter, shapes, flops), counter, torch.no_grad():
        vae.decode(vae.encode(image).mode())
    return [_describe(name, part, shapes[name], flops[name]) for name, part in parts.items()]


def _parts(vae: TransferVAE) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {"backbone": vae.backbone, "head": vae.head}
    for name, child in vae.decoder.named_children():
        if isinstance(child, nn.ModuleList):
            parts |= {f"decoder {name.removesuffix('s')} {i}": stage for i, stage in enumerate(child, start=1)}
        else:
            parts[f"decoder {name.replace('_', ' ')}"] = child
    return parts


@contextmanager
def _recording(
    parts: dict[str, nn.Module], counter: FlopCounterMode, shapes: dict[str, tuple[int, ...]], flops: dict[str, int]
) -> Iterator[None]:
    def before(name: str) -> None:
        flops[name] = counter.get_total_flops()

    def after(name: str, output: Tensor | Posterior) -> None:
        tensor = output if isinstance(output, Tensor) else output.mean
        shapes[name] = tuple(tensor.shape[1:])
        flops[name] = counter.get_total_flops() - flops[name]

    handles = []
    for name, part in parts.items():
        handles.append(part.register_forward_pre_hook(lambda *_, name=name: before(name)))
        handles.append(part.register_forward_hook(lambda *call, name=name: after(name, call[-1])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _describe(name: str, part: nn.Module, shape: tuple[int, ...], flops: int) -> PartSummary:
    trainable = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in part.parameters() if not parameter.requires_grad)
    return PartSummary(name, shape, trainable, frozen, flops)
