"""What learners share: options, photographs, and a clock that stands while they are judged. Needs numpy and pillow."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LOWEST_ERROR = 1e-10


@dataclass(frozen=True)
class Task:
    """What is to be learnt.

    Attributes:
        training: Folder of photographs to learn from.
        held: Folder of photographs to be judged on.
        image_size: Side of the images in pixels; photographs are scaled and centre-cut.
        latent_dim: Length of the latent vector.
        batch: Images a step.
        epochs: Passes over the photographs.
        limit: Seconds after which the learner stops at an epoch's end.
        seed: Of everything random.
    """

    training: str
    held: str
    image_size: int
    latent_dim: int
    batch: int
    epochs: int
    limit: float
    seed: int


def read_task() -> Task:
    """The task on the command line."""
    return Task(**json.loads(sys.argv[1]))


def read_photographs(folder: str, side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """All photographs of a folder in memory, uint8 `[n, side, side, 3]`."""
    found = []
    for path in sorted(Path(folder).iterdir()):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        scale = side / min(image.size)
        wide, high = (max(side, round(length * scale)) for length in image.size)
        if (wide, high) != image.size:
            image = image.resize((wide, high), Image.Resampling.BICUBIC)
        left, top = (wide - side) // 2, (high - side) // 2
        found.append(np.asarray(image.crop((left, top, left + side, top + side))))
    return np.stack(found)


def mean_psnr(made: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, of values in [0, 1] and 8-bit values."""
    error = ((made.astype(np.float64) - wanted / 255) ** 2).reshape(len(made), -1).mean(axis=1)
    return float((-10 * np.log10(np.maximum(error, LOWEST_ERROR))).mean())


class Clock:
    """Seconds since the learner began, without those in which it was judged."""

    def __init__(self) -> None:
        """Start."""
        self._began = time.perf_counter()
        self._away = 0.0

    @property
    def seconds(self) -> float:
        """Until now."""
        return time.perf_counter() - self._began - self._away

    def judge(self, psnr: Callable[[], float]) -> None:
        """Say how good the reconstructions of held-out photographs are by now."""
        stopped, seconds = time.perf_counter(), self.seconds
        self.say(seconds, psnr())
        self._away += time.perf_counter() - stopped

    @staticmethod
    def say(seconds: float, psnr: float) -> None:
        """Report one point of the curve."""
        print(json.dumps({"seconds": seconds, "psnr": psnr}), flush=True)


def shuffled(count: int, batch: int, generator: np.random.Generator) -> Iterator[np.ndarray[Any, Any]]:
    """Indices of an epoch's batches; a last one that is not full is left out."""
    order = generator.permutation(count)
    yield from (order[first : first + batch] for first in range(0, count - batch + 1, batch))
