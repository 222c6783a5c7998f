"""An exponential moving average of the trained weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of parameters over steps: average <- decay * average + (1 - decay) * parameter.

    Attributes:
        decay: In (0, 1).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        """Start at the parameters' values.

        Args:
            parameters: Those to average.
            decay: In (0, 1).
        """
        self.decay = decay
        self._parameters = list(parameters)
        self._average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Add the parameters' present values."""
        for average, parameter in zip(self._average, self._parameters, strict=True):
            average.lerp_(parameter, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the parameters have the averaged values, and afterwards their own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by place."""
        return {str(place): average for place, average in enumerate(self._average)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over averages that `state_dict` gave."""
        for place, average in enumerate(self._average):
            average.copy_(state[str(place)])

    def move(self) -> None:
        """Bring the averages to the parameters' device."""
        pairs = zip(self._average, self._parameters, strict=True)
        self._average = [average.to(parameter.device) for average, parameter in pairs]

    @torch.no_grad()
    def _swap(self) -> None:
        for average, parameter in zip(self._average, self._parameters, strict=True):
            own = parameter.clone()
            parameter.copy_(average)
            average.copy_(own)
