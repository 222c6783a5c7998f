"""Skips steps of optimisers whose loss is not finite, or has jumped."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from transfervae.ranks import average

LARGEST_JUMP = 10.0
"""Largest ratio of a loss to its running mean that is allowed."""

DECAY = 0.99
"""Of the running value."""


class StepGuard(nn.Module):
    """Refuses steps whose loss is not finite, or ten times its running value, on all processes alike.

    Attributes:
        names: The losses that are watched.
        skipped: Steps that were refused in this epoch, by name.
    """

    running: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        """Watch some losses.

        Args:
            names: Of the losses.
        """
        super().__init__()
        self.names = list(names)
        self.skipped = dict.fromkeys(self.names, 0)
        self.register_buffer("running", torch.full((len(self.names),), torch.nan))

    def allows(self, name: str, loss: Tensor) -> bool:
        """Whether a step may be made with this loss; waits for the device."""
        place = self.names.index(name)
        value, running = loss.detach().abs().float(), self.running[place]
        is_wrong = ~value.isfinite() | (value > LARGEST_JUMP * running)  # nothing is larger than NaN
        if average(is_wrong.float()).item():
            self.skipped[name] += 1
            return False
        now = average(value)
        self.running[place] = torch.where(running.isnan(), now, DECAY * running + (1 - DECAY) * now)
        return True
