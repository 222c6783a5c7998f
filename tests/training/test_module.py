from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import transfervae as tv
from tests.runs import Small
from tests.samples import KINDS, make_backbone, shared_backbone
from transfervae.cache import CachedItem
from transfervae.execution import MEMORY_FORMATS, PRECISIONS, Execution
from transfervae.metrics import make_metrics
from transfervae.shapes import unit_images
from transfervae.training._checkpoint_io import SafetensorsIO
from transfervae.training.module import Batch, VAEModule

COUNT = 4


def pixels(size: int = 32) -> Tensor:
    return torch.randint(0, 256, (COUNT, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def cached_batch(kind: str = "resnet") -> CachedItem:
    with torch.no_grad():
        features = shared_backbone(kind)(unit_images(pixels(KINDS[kind].size)))
    return CachedItem(pixels(KINDS[kind].size), features.half())


def module_of(vae: tv.TransferVAE, objective: Any = "rmse,kl", **options: Any) -> VAEModule:
    metrics = make_metrics(("rmse", "kl", "active_units"))
    return VAEModule(vae, tv.Objective.parse(objective), metrics, **options).train()


def _loss_of(module: VAEModule, batch: Batch) -> Tensor:
    output, images = module._run(batch)
    return module._objective_of(output, images, None).total


def make_module(kind: str = "resnet", objective: Any = "rmse,kl") -> VAEModule:
    torch.manual_seed(0)
    vae = tv.build_vae(
        make_backbone(kind), image_size=KINDS[kind].size, latent_dim=5, decoder=tv.Spec("resize", width=16)
    )
    return module_of(vae, objective)


def step(module: VAEModule, batch: Batch) -> Tensor:
    """The objective of one step, with the same draw in every call."""
    module._generator = torch.Generator().manual_seed(1)
    return _loss_of(module, batch)


class Copies(TorchDispatchMode):
    """Notes what is moved from the host to the device "meta"."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        result = func(*args, **(kwargs or {}))
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor) and value.is_meta]
        if made and (any(value.device.type == "cpu" for value in given) or "lift_fresh" in str(func)):
            self.seen.append(str(func))
        return result


def on_meta(batch: Batch) -> Batch:
    return CachedItem(*(part.to("meta") for part in batch)) if isinstance(batch, CachedItem) else batch.to("meta")


BATCHES: dict[str, Callable[[], Batch]] = {
    "pixels": pixels,
    "images": lambda: unit_images(pixels()),
    "cached": cached_batch,
}


@pytest.mark.parametrize(
    "copy",
    [
        lambda: torch.ones(3).to("meta"),
        lambda: torch.zeros(2, device="meta").copy_(torch.ones(2)),
    ],
)
def test_copies_are_noticed(copy: Callable[[], Tensor]) -> None:
    with Copies() as copies:
        copy()
    assert copies.seen


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("reconstruction", ["rmse", "mse"])
def test_a_step_neither_waits_for_the_device_nor_copies_to_it(kind: str, reconstruction: str) -> None:
    """On "meta" there are no values: whatever would wait for one raises."""
    module = make_module(objective=[reconstruction, tv.Spec("kl", schedule="linear", free_bits=0.1)])
    batch = BATCHES[kind]()
    step(module, batch)
    module.to("meta")
    module._generator = None  # there are none on "meta"
    moved = on_meta(batch)
    with Copies() as copies:
        output, images = module._run(moved)
        value = module._objective_of(output, images, module.objective.weights_at(3, 10))
        module._note(module._train_means, value, len(images))
        loss = value.total
        loss.backward()
    assert loss.is_meta
    assert not copies.seen
    with pytest.raises(RuntimeError):
        loss.item()


@pytest.mark.parametrize("kind", ["pixels", "images"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_frozen_network_is_under_no_graph(kind: str, precision: str) -> None:
    module, seen = make_module(), []
    module.execution = Execution(precision)
    module.vae.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    step(module, BATCHES[kind]()).backward()
    (features,) = seen
    assert not features.requires_grad
    assert features.grad_fn is None
    assert all(parameter.grad is None for parameter in module.vae.backbone.parameters())
    assert all(parameter.grad is not None for parameter in module.vae.head.parameters())


def test_the_backbone_is_not_run_on_cached_features(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module()
    monkeypatch.setattr(module.vae.backbone.network, "forward", lambda *_: pytest.fail("the network was run"))
    step(module, cached_batch()).backward()
    module.eval()
    module.validation_step(cached_batch(), 0)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_eight_bits_give_what_floating_point_gives(precision: str, layout: str) -> None:
    losses = []
    for batch in (pixels(), unit_images(pixels())):
        module = make_module()
        module.execution = Execution(precision, layout)
        losses.append(step(module, batch).detach())
    assert torch.equal(*losses)


def test_cached_features_give_what_live_ones_give() -> None:
    module = make_module()
    live, read = step(module, pixels()).detach(), step(module, cached_batch()).detach()
    torch.testing.assert_close(read, live, rtol=2.0**-11, atol=0)


def test_held_out_figures_of_cached_and_of_live_images_agree() -> None:
    figures = []
    for batch in (pixels(), cached_batch()):
        module = make_module().eval()
        with torch.no_grad():
            module.validation_step(batch, 0)
        figures.append({name: float(value) for name, value in module.metrics.compute().items()})
    assert figures[1] == pytest.approx(figures[0], rel=1e-2)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
def test_the_layout_reaches_model_and_images(layout: str) -> None:
    vae, seen = (
        tv.build_vae(make_backbone("resnet"), image_size=32, latent_dim=5, decoder=tv.Spec("resize", width=16)),
        [],
    )
    module = module_of(vae, execution=Execution("float32", layout))
    vae.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    step(module, pixels())
    expected = module.execution.torch_memory_format
    assert seen[0].is_contiguous(memory_format=expected)
    convolutions = [part for part in vae.modules() if isinstance(part, torch.nn.Conv2d)]
    assert all(part.weight.is_contiguous(memory_format=expected) for part in convolutions)


def checkpoint_of(module: VAEModule) -> dict[str, Any]:
    """What the trainer stores: weights, and Adam's two moments of each."""
    optimizer = torch.optim.Adam(module.vae.trainable_parameters())
    for parameter in module.vae.trainable_parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}


def test_a_checkpoint_of_the_default_model_is_small_and_holds_no_backbone(tmp_path: Path) -> None:
    vae = tv.build_vae(tv.Spec("vgg19", weights=None), image_size=128)
    module = module_of(vae)
    checkpoint = checkpoint_of(module)
    assert not [name for name in checkpoint["state_dict"] if "backbone" in name or "network" in name]
    SafetensorsIO().save_checkpoint(checkpoint, tmp_path / "last.safetensors")
    assert (tmp_path / "last.safetensors").stat().st_size < 45e6  # VGG19 alone: 80e6
    vae.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 45e6 / 3


class Judging(tv.Term):
    """A term whose optimiser has a part of its parameters only, as a discriminator on frozen features."""

    name = "judging"

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Conv2d(3, 2, 4).requires_grad_(requires_grad=False)
        self.judge = torch.nn.Conv2d(2, 1, 1)
        self.carried: list[bool] = []

    def forward(self, output: Any, images: Tensor) -> Tensor:
        verdict: Tensor = self.judge(self.frozen(output.reconstruction)).flatten(1).mean(dim=1)
        return images.flatten(1).mean(dim=1) - verdict

    def make_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.judge.parameters(), lr=0.1)

    def own_loss(self, output: Any, images: Tensor) -> Tensor:
        given = (output.reconstruction, output.latent, output.posterior.mean, output.posterior.logvar)
        self.carried.append(any(value.requires_grad for value in given))
        loss: Tensor = self.judge(self.frozen(images)).mean() + output.posterior.mean.mean()
        return loss


def test_a_term_s_own_step_neither_thaws_its_frozen_parts_nor_reaches_the_model(tmp_path: Path) -> None:
    term = Judging()
    before = [value.clone() for value in (term.frozen.weight, term.judge.weight)]
    objective = tv.Objective("rmse", tv.Spec("kl", weight=1e-4), tv.WeightedTerm(term, weight=0.01))
    replace(Small(faces=24, epochs=1), objective=objective).train(tmp_path)
    assert not any(parameter.requires_grad for parameter in term.frozen.parameters())
    assert torch.equal(term.frozen.weight, before[0])
    assert term.frozen.weight.grad is None
    assert not torch.equal(term.judge.weight, before[1])
    assert term.carried
    assert not any(term.carried)
