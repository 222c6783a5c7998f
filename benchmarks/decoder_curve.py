r"""Held-out error of decoders, or of nodes, after equal seconds of one core.

    OMP_NUM_THREADS=1 python benchmarks/decoder_curve.py --case vector olivetti 400 --case map smiles 4000
    OMP_NUM_THREADS=1 python benchmarks/decoder_curve.py --case vector clothing 3068 --decoder "residual 96" \
        --seconds 45 --node 3 2,1,0 2,1,0,3 --out docs/results/nodes_colour.json --picture nodes.png

A case is a kind of latent, a folder of photographs, and how many of them are taken, evenly spaced; every fifth is held
out. Features are computed once and are not counted: all decoders get the same head, objective, optimiser, batches and
seconds, in the precision and memory layout that trains fastest on the machine. The learning rate falls along a half
cosine over the seconds. Seconds are the process's own, so that other work on the machine changes little. Where the
photographs lie in folders by class, a linear probe of the held-out latents is measured too.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import torch
from machine import describe_machine
from torch import Tensor, nn

import transfervae as tv
from transfervae.data import ImageFolder
from transfervae.evaluation.probes import probe
from transfervae.execution import Execution, choose_execution, measure_executions
from transfervae.shapes import unit_images
from transfervae.training.recipes import SHARP, VECTOR

mpl.use("Agg")

from matplotlib import pyplot as plt

SCHEMA = 1
RESULTS = Path(__file__).parent / "results"
RECIPES: Mapping[str, Mapping[str, Any]] = {"vector": VECTOR, "map": SHARP}
OBJECTIVES: Mapping[str, Any] = {"vector": "gaussian_nll,kl", "map": {"l1": {}, "kl": {"weight": 1e-6}}}
GROUPS = 8
WARMUP = 0.05
CELL = 4
PEAK_RATE = 1e-3


class NormedBlock(nn.Module):
    """A residual block as in `residual_decoder`, with group normalisation before each activation."""

    def __init__(self, block: Any) -> None:
        """Take a block's convolutions."""
        super().__init__()
        channels = block.first.in_channels
        self.body = nn.Sequential(
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            block.first,
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            block.second,
        )

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, c, h, w]` to the same shape."""
        changed: Tensor = self.body(grid)
        return grid + changed


class SeparableBlock(nn.Module):
    """A depthwise 7x7 convolution and an inverted bottleneck of factor 3 beside the input, as in ConvNeXt."""

    def __init__(self, block: Any) -> None:
        """Replace a block of as many channels."""
        super().__init__()
        channels = block.first.in_channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels),
            nn.GroupNorm(1, channels),
            nn.Conv2d(channels, 3 * channels, kernel_size=1),
            nn.SiLU(),
            nn.Conv2d(3 * channels, channels, kernel_size=1),
        )
        nn.init.zeros_(cast(Tensor, self.body[-1].weight))

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, c, h, w]` to the same shape."""
        changed: Tensor = self.body(grid)
        return grid + changed


def residual(change: Callable[[nn.Module], nn.Module] | None = None, **options: Any) -> Callable[..., nn.Module]:
    """A builder of `residual_decoder` with its blocks changed."""

    def build(latent_shape: Sequence[int], size: int) -> nn.Module:
        decoder = tv.residual_decoder(latent_shape, size, **options)
        if change is not None:
            for place, part in enumerate(decoder.stages):
                if type(part).__name__ == "ResidualBlock":
                    decoder.stages[place] = change(part)
        return decoder

    return build


class ThinEnd(nn.Module):
    """To the pixels by 2 twice, with a thin stage at full resolution, in place of one step by 4."""

    def __init__(self, step: Any, size: int) -> None:
        """Replace a step to images of a size."""
        super().__init__()
        layer, before = type(step.detail), step.color.in_channels
        self.finer = nn.Sequential(layer(before, 32, 2, (size // 2,) * 2), nn.SiLU(), layer(32, 16, 2, (size,) * 2))
        self.color = nn.Conv2d(16, 3, kernel_size=3, padding=1)

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, c, h, w]` to `[b, 3, 4h, 4w]`."""
        rgb: Tensor = self.color(nn.functional.silu(self.finer(grid)))
        return rgb


class SubPixelEnd(nn.Module):
    """To the pixels by a sub-pixel convolution alone."""

    def __init__(self, step: Any) -> None:
        """Replace a step."""
        super().__init__()
        self.color = step.color  # whose precision latents take
        detail = step.detail.convolution
        self.detail = type(step.detail)(detail.in_channels, 3, step.factor, step.detail.crop.size)

    def forward(self, grid: Tensor) -> Tensor:
        """Map `[b, c, h, w]` to `[b, 3, 4h, 4w]`."""
        rgb: Tensor = self.detail(grid)
        return rgb


def ending(end: Callable[[Any, int], nn.Module]) -> Callable[..., nn.Module]:
    """A builder of `residual_decoder` with another last step."""

    def build(latent_shape: Sequence[int], size: int) -> nn.Module:
        decoder: Any = tv.residual_decoder(latent_shape, size)
        decoder.to_rgb = end(decoder.to_rgb, size)
        return cast(nn.Module, decoder)

    return build


DECODERS: Mapping[str, Callable[..., nn.Module]] = {
    "resize 128": lambda shape, size: tv.resize_decoder(shape, size, width=128),
    "resize 256": lambda shape, size: tv.resize_decoder(shape, size, width=256),
    "pixelshuffle 128": lambda shape, size: tv.pixelshuffle_decoder(shape, size, width=128),
    "residual 64": residual(width=64),
    "residual 96": residual(width=96),
    "residual 128": residual(width=128),
    "residual 96, two blocks": residual(width=96, blocks=2),
    "residual 96, group norm": residual(NormedBlock, width=96),
    "residual 96, separable": residual(SeparableBlock, width=96),
    "residual 96, thin full resolution": ending(ThinEnd),
    "residual 96, sub-pixels alone": ending(lambda step, _size: SubPixelEnd(step)),
}


class Images:
    """A case's images and features, split."""

    def __init__(self, folder: str, count: int, size: int, node: str) -> None:
        """Read images and compute features of `packaged` at a node."""
        dataset = ImageFolder(folder, size, dtype=torch.uint8)
        taken = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().tolist()
        self.pixels = torch.stack([dataset[index] for index in taken])
        self.backbone = tv.create_backbone("packaged", node=int(node) if node.isdigit() else node)
        with torch.no_grad():
            found = [self.backbone(unit_images(batch)).half() for batch in self.pixels.split(64)]
        self.features = torch.cat(found)
        classes = [dataset.paths[index].parent.name for index in taken]
        self.labels = [sorted(set(classes)).index(name) for name in classes]
        held = torch.arange(len(taken)) % 5 == 4
        self.training, self.held = (~held).nonzero().flatten(), held.nonzero().flatten()


def main() -> None:
    """Measure, print, draw, and write JSON."""
    arguments = parse()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": describe_machine(torch.device("cpu")),
        "seed": arguments.seed,
    }
    report |= {"image_size": arguments.size, "batch": arguments.batch, "rows": []}
    for (kind, folder, count), node in product(arguments.case, arguments.node):
        images = Images(folder, int(count), arguments.size, node)
        execution = fastest(kind, images, arguments)
        for name, seconds in ((name, seconds) for seconds in arguments.seconds for name in arguments.decoder):
            row = {"latent": kind, "data": Path(folder).name, "images": len(images.pixels), "node": node}
            row["decoder"] = name
            row |= {"precision": execution.precision, **measure(kind, name, images, seconds, execution, arguments)}
            report["rows"].append(row)
            print(json.dumps(row), flush=True)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    draw(report["rows"], arguments.picture)


def build(kind: str, name: str, images: Images, arguments: argparse.Namespace) -> tv.TransferVAE:
    """The recipe's model with another decoder."""
    torch.manual_seed(arguments.seed)
    recipe = tv.build_vae(images.backbone, image_size=arguments.size, head=RECIPES[kind]["head"])
    return tv.TransferVAE(images.backbone, recipe.head, DECODERS[name](recipe.latent_shape, arguments.size))


def fastest(kind: str, images: Images, arguments: argparse.Namespace) -> Execution:
    """What the trainer would choose."""
    vae = build(kind, "residual 96", images, arguments)
    return choose_execution(measure_executions(vae, batch_size=arguments.batch))


def measure(
    kind: str, name: str, images: Images, seconds: float, execution: Execution, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train a model for so many seconds of the process, and its error on held-out images."""
    vae = build(kind, name, images, arguments).to(memory_format=execution.torch_memory_format).train()
    objective = tv.Objective.parse(OBJECTIVES[kind])
    parameters = [*vae.trainable_parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    steps, began = 0, time.process_time()
    for batch in batches(images.training, arguments.batch, arguments.seed):
        share = (time.process_time() - began) / seconds
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, (share + 1e-3) / WARMUP) * (1 + math.cos(math.pi * share)) / 2
        pixels = unit_images(images.pixels[batch]).to(memory_format=execution.torch_memory_format)
        with execution.autocast(torch.device("cpu")):
            value = objective(vae.forward_from_features(images.features[batch].float()), pixels)
        optimizer.zero_grad()
        value.total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        steps += 1
    vae.eval()
    squares, kls, means, edges = [], [], [], []
    with torch.no_grad(), execution.autocast(torch.device("cpu")):
        for batch in images.held.split(64):
            output = vae.forward_from_features(images.features[batch].float())
            squares.append((output.reconstruction - unit_images(images.pixels[batch])).square().mean((1, 2, 3)))
            kls.append(output.posterior.kl())
            means.append(output.posterior.mode())
            edges.append(edge_ratio(output.reconstruction))
    errors = torch.cat(squares)
    labels = [images.labels[place] for place in images.held.tolist()]
    told = {} if len(set(labels)) == 1 else {"linear_probe": probe(torch.cat(means), labels).linear}
    return {
        **told,
        "seconds": seconds,
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in vae.decoder.parameters()),
        "rmse": errors.sqrt().mean().item(),
        "psnr": (-10 * errors.log10()).mean().item(),
        "kl": torch.cat(kls).mean().item(),
        "edge_ratio": sum(edges) / len(edges),
    }


def edge_ratio(images: Tensor) -> float:
    """How much larger differences of neighbouring pixels are across the edges of cells of 4 pixels than within."""
    steps = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(0, 1, 2))
    across = torch.arange(len(steps)) % CELL == CELL - 1
    return (steps[across].mean() / steps[~across].mean()).item()


def batches(indices: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """Shuffled batches without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from indices[torch.randperm(len(indices), generator=generator)].split(size)[: len(indices) // size]


def label_of(row: Mapping[str, Any]) -> str:
    """What a line is called."""
    return str(row["decoder"]) + (f" at {row['node']}" if row.get("node", "fine") != "fine" else "")


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Error against seconds, one panel a case and one line a decoder."""
    cases = list(dict.fromkeys((row["latent"], row["data"]) for row in rows))
    figure, panels = plt.subplots(1, len(cases), figsize=(5.5 * len(cases), 4.2), squeeze=False, layout="constrained")
    for panel, (latent, data) in zip(panels[0], cases, strict=True):
        chosen = [row for row in rows if (row["latent"], row["data"]) == (latent, data)]
        for number, name in enumerate(dict.fromkeys(label_of(row) for row in chosen)):
            line = sorted((row["seconds"], row["rmse"]) for row in chosen if label_of(row) == name)
            style = "-" if name.startswith("residual") else "--"
            panel.plot(*zip(*line, strict=True), style, marker="o", color=f"C{number}", label=name)
        panel.set(title=f"{data}, latent {latent}", xlabel="seconds of one core", ylabel="held-out RMSE", xscale="log")
        ticks = sorted({row["seconds"] for row in chosen})
        panel.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][-1].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, action="append", required=True, metavar=("LATENT", "FOLDER", "IMAGES"))
    parser.add_argument("--decoder", nargs="+", choices=DECODERS, default=list(DECODERS))
    parser.add_argument("--node", nargs="+", default=["fine"], help="as --backbone.node takes it")
    parser.add_argument("--seconds", type=float, nargs="+", default=[20, 60])
    parser.add_argument("--size", type=int, default=64, help="image size in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "decoders.json", help="the JSON file")
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/decoder-curve.png"), help="the plot")
    return parser.parse_args()


if __name__ == "__main__":
    main()
