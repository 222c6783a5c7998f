"""Compile each kind's and head's forward pass and objective as one graph; print as JSON how each differs from eager.

A program of its own, because the shape checks of the test run cannot be traced.
"""

import json

import torch
from torch import Tensor, nn

import transfervae as tv
from tests.samples import KINDS, make_vae, random_images
from transfervae.heads import HEADS


def evaluation_error(kind: str, head: str = "gaussian") -> float:
    vae, images = make_vae(kind, head=head, latent_dim=None).eval(), random_images(kind)

    def objective(batch: Tensor) -> tuple[Tensor, ...]:
        output = vae(batch)
        return (output.reconstruction, *tv.losses.elbo(output, batch))

    torch.compiler.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    return max((a - b).abs().max().item() for a, b in zip(compiled(images), objective(images), strict=True))


def parameters_without_gradient() -> int:
    vae, images = make_vae("resnet").train(), random_images("resnet")
    torch.compiler.reset()
    compiled = torch.compile(lambda batch: tv.losses.elbo(vae(batch), batch).total, fullgraph=True, backend="aot_eager")
    compiled(images).backward()
    return sum(parameter.grad is None for parameter in vae.trainable_parameters())


class Reconstruct(nn.Module):
    """What is exported: images to images."""

    def __init__(self, vae: tv.TransferVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> Tensor:
        return self.vae.reconstruct(images)


def export_error() -> float:
    vae, images = make_vae().eval(), random_images()
    exported = torch.export.export(Reconstruct(vae).eval(), (images,)).module()
    difference: float = (exported(images) - vae.reconstruct(images)).abs().max().item()
    return difference


def main() -> None:
    torch.set_num_threads(1)
    report: dict[str, float | str] = {}
    others = [head for head in HEADS if head != "gaussian"]
    cases = {kind: (kind, "gaussian") for kind in KINDS} | {f"head {head}": ("resnet", head) for head in others}
    for name, case in cases.items():
        try:
            report[name] = evaluation_error(*case)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            report[name] = f"{type(error).__name__}: {error}"
    report["without gradient"] = parameters_without_gradient()
    report["export"] = export_error()
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main()
