import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import transfervae as tv
from tests.samples import make_backbone, make_vae, random_images
from transfervae import execution
from transfervae.errors import InvalidOptionError
from transfervae.execution import (
    MEMORY_FORMATS,
    PLAIN,
    PRECISIONS,
    WORTH_IT,
    Execution,
    Trial,
    choose_execution,
    measure_executions,
)

WAYS = [Execution(precision, memory_format) for precision in PRECISIONS for memory_format in MEMORY_FORMATS]
SPEEDS = st.floats(0.01, 1e6)
TRIALS = st.lists(st.tuples(st.sampled_from(WAYS), SPEEDS), min_size=1, unique_by=lambda trial: trial[0]).map(
    lambda pairs: [Trial(*pair) for pair in pairs]
)


@given(trials=TRIALS)
def test_what_is_plain_stays_unless_another_way_is_worth_it(trials: list[Trial]) -> None:
    speeds = {trial.execution: trial.images_per_second for trial in trials}
    chosen, fastest = choose_execution(trials), max(speeds.values())
    if PLAIN in speeds and speeds[Execution(*PLAIN)] * WORTH_IT > fastest:
        assert chosen == PLAIN
    else:
        assert speeds[chosen] == fastest


@given(trials=TRIALS, factor=st.floats(0.5, 2))
def test_only_the_ratios_of_speeds_count(trials: list[Trial], factor: float) -> None:
    speeds = sorted(trial.images_per_second for trial in trials)
    if any(abs(WORTH_IT * slow / fast - 1) < 1e-9 or fast / slow - 1 < 1e-9 for slow in speeds for fast in speeds):
        trials = trials[:1]
    scaled = [Trial(trial.execution, trial.images_per_second * factor) for trial in trials]
    assert choose_execution(scaled) == choose_execution(trials)


def state_of(vae: tv.TransferVAE) -> Mapping[str, torch.Tensor]:
    return {name: value.clone() for name, value in vae.state_dict().items()}


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_measuring_leaves_no_trace(*, is_training: bool, has_gradients: bool) -> None:
    vae = make_vae("resnet").train(is_training)
    if has_gradients:
        vae(random_images("resnet")).reconstruction.sum().backward()
    parts = [copy.deepcopy(part.grad) for part in vae.parameters()]
    before, modes, random_state = (
        state_of(vae),
        [module.training for module in vae.modules()],
        torch.get_rng_state(),
    )
    trials = measure_executions(vae, batch_size=2)
    assert [trial.execution for trial in trials] == WAYS
    assert all(trial.images_per_second > 0 for trial in trials)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert [module.training for module in vae.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(value.is_contiguous() for value in vae.state_dict().values())
    assert torch.is_grad_enabled()
    for parameter, gradient in zip(vae.parameters(), parts, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_a_measurement_that_fails_leaves_no_trace_either(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae("resnet").eval()
    before, random_state = state_of(vae), torch.get_rng_state()

    def fail(*_: object) -> float:
        torch.rand(3)
        raise MemoryError

    monkeypatch.setattr(execution, "_step", fail)
    with pytest.raises(MemoryError):
        measure_executions(vae, batch_size=1)
    assert not vae.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(value.is_contiguous() for value in vae.state_dict().values())


def test_what_is_measured_can_be_narrowed() -> None:
    trials = measure_executions(
        make_vae("resnet"), batch_size=1, precisions=("float32",), memory_formats=("channels_last",)
    )
    assert [trial.execution for trial in trials] == [("float32", "channels_last")]


def test_a_hopeless_way_is_not_measured_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Execution] = []

    def step(_vae: object, _images: object, way: Execution) -> float:
        steps.append(way)
        return 1000.0 if way.precision == "bfloat16" else 1.0

    monkeypatch.setattr(execution, "_step", step)
    trials = measure_executions(make_vae("resnet"), batch_size=1)
    assert [steps.count(way) for way in WAYS] == [2 + execution.ROUNDS, 2 + execution.ROUNDS, 2, 2]
    assert choose_execution(trials).precision == "bfloat16"


@pytest.mark.usefixtures("without_shape_checks")
def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="batch_size"):
        measure_executions(make_vae("resnet"), batch_size=0)


def test_autocast_computes_in_the_precision_named() -> None:
    layer, images = nn.Conv2d(3, 2, 1), torch.rand(1, 3, 4, 4)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with Execution(name).autocast(images.device):
            assert layer(images).dtype == dtype
        assert layer(images).dtype == torch.float32
    assert layer.weight.dtype == torch.float32


def test_head_and_losses_stay_in_float32() -> None:
    vae, images = make_vae("resnet").train(), random_images("resnet")
    with Execution("bfloat16").autocast(images.device):
        output = vae(images)
        terms = tv.losses.elbo(output, images)
    assert isinstance(output.posterior, tv.DiagonalGaussian)
    for value in (output.posterior.mean, output.posterior.logvar, output.latent, *terms):
        assert value.dtype == torch.float32


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_nearly_the_same(way: Execution) -> None:
    vae = tv.build_vae(make_backbone("resnet"), image_size=32, latent_dim=5, decoder=tv.Spec("resize", width=16)).eval()
    images = random_images("resnet")
    plain = vae.reconstruct(images)
    vae.to(memory_format=way.torch_memory_format)
    with torch.no_grad(), way.autocast(images.device):
        other = vae.reconstruct(images.contiguous(memory_format=way.torch_memory_format))
    torch.testing.assert_close(other.float(), plain, rtol=0, atol=1e-5 if way.precision == "float32" else 0.05)


def test_a_way_that_the_network_cannot_be_computed_in_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = make_vae("resnet")
    compute: Callable[[torch.Tensor], torch.Tensor] = vae.backbone.network.forward

    def refuse(images: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise NotImplementedError("not implemented for 'BFloat16'")
        return compute(images)

    monkeypatch.setattr(vae.backbone.network, "forward", refuse)
    trials = measure_executions(vae, batch_size=1)
    assert {trial.execution.precision for trial in trials if trial.images_per_second == 0} == {"bfloat16"}
    assert choose_execution(trials).precision == "float32"
