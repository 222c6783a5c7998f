from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runs import Small
from transfervae.decoders import DECODERS
from transfervae.errors import InvalidOptionError


def note(sizes: list[int], value: Tensor) -> Tensor:
    sizes.append(value.numel())
    return value


@pytest.mark.parametrize(("name", "width"), [("vit", 32), ("kl", 16)])
def test_activations_computed_again_give_the_same_images_and_gradients(name: str, width: int) -> None:
    torch.manual_seed(0)
    decoder: Any = DECODERS[name]((4, 4, 4), 32, width=width).train()
    latents = torch.randn(2, 4, 4, 4)
    results, kept = [], []
    for enabled in (False, True):
        decoder.gradient_checkpointing = enabled
        decoder.zero_grad()
        sizes: list[int] = []
        leaf = latents.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(partial(note, sizes), lambda value: value):
            images = decoder(leaf)
        images.square().mean().backward()
        results.append([images, leaf.grad, *(parameter.grad for parameter in decoder.parameters())])
        kept.append(sum(sizes))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert kept[1] < kept[0] / 2


def test_a_decoder_without_blocks_to_compute_again_refuses(tmp_path: Path) -> None:
    small = Small()
    with pytest.raises(InvalidOptionError, match="vit and kl"):
        small.train(tmp_path / "run", engine={**small.engine, "gradient_checkpointing": True})
