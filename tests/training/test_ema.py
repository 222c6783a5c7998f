import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.testing import assert_close

from tests.strategies import SEEDS
from transfervae.training._ema import WeightAverage


@given(decay=st.floats(0.1, 0.99), steps=st.integers(1, 8), seed=SEEDS)
def test_the_average_is_torch_s(decay: float, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    oracle = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    oracle.update_parameters(model)  # the first call copies
    average = WeightAverage(model.parameters(), decay)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        oracle.update_parameters(model)
        average.update()
    raw = [parameter.clone() for parameter in model.parameters()]
    with average.in_place():
        for parameter, expected in zip(model.parameters(), oracle.module.parameters(), strict=True):
            assert_close(parameter, expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), raw, strict=True))


def test_its_state_goes_on_where_it_was() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    average, again = (WeightAverage(model.parameters(), 0.5) for model in (first, second))
    average.update()
    again.load_state_dict(average.state_dict())
    with again.in_place():
        assert torch.equal(second.weight, average.state_dict()["0"])
