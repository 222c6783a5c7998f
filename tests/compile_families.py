"""Compile backbone, head and KL of each network named as one graph; print as JSON how it differs from eager.

A program of its own, because the shape checks of the test run cannot be traced. "module" stands for a network in memory
that is read at two submodules, "blocks" for a network of timm that is read at two of them.
"""

import json
import sys
import warnings

import torch
from torch import Tensor, nn

import transfervae as tv
from tests.families import FAMILIES, WIDE


def make_vae(name: str) -> tv.TransferVAE:
    if name in FAMILIES:
        return tv.build_vae(
            tv.Spec(f"timm:{name}", weights=None),
            image_size=FAMILIES[name],
            latent_dim=3,
            decoder=tv.Spec("resize", width=8),
        )
    backbone = make_blocks() if name == "blocks" else make_module()
    return tv.build_vae(backbone, image_size=WIDE, latent_dim=3, decoder=tv.Spec("resize", width=8))


def make_blocks() -> tv.FrozenBackbone:
    return tv.create_backbone("timm:test_vit", node=("blocks.1", "blocks.3.norm2"), weights=None)


def make_module() -> tv.FrozenBackbone:
    layers = [nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, stride=2), nn.Flatten()]
    module = nn.Sequential(*layers)
    return tv.FrozenBackbone.from_module(module, ["0", "2"], fuse="mean", mean=(0.5,) * 3, std=(0.5,) * 3)


def difference(name: str) -> float:
    torch.manual_seed(0)
    vae = make_vae(name).eval()
    images = torch.rand(2, 3, *vae.image_size)

    def objective(batch: Tensor) -> Tensor:
        posterior = vae.head(vae.backbone(batch))
        return torch.cat([posterior.mean.flatten(), posterior.logvar.flatten(), posterior.kl()])

    torch.compiler.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    return (compiled(images) - objective(images)).abs().max().item()


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    report: dict[str, float | str] = {}
    for name in sys.argv[1:]:
        try:
            report[name] = difference(name)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            report[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    main()
