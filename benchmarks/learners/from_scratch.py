"""The library's head, decoder, objective and optimiser on an encoder that is learnt from scratch."""

import math

import numpy as np
import torch
from torch import Tensor, nn

import transfervae as tv
from learners.common import Clock, mean_psnr, read_photographs, read_task, shuffled
from learners.plain_torch import to_batch
from transfervae.execution import Execution
from transfervae.training.recipes import VECTOR

WIDTHS = (32, 64, 128)
GROUP = 8
RATE = 1e-3
TIMED = 3


def make_encoder() -> nn.Sequential:
    """`[b, 3, h, w]` in [0, 1] to `[b, 128, h / 8, w / 8]`: convolutions, each at half the resolution."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1), nn.GroupNorm(GROUP, after), nn.SiLU()]
        layers += [nn.Conv2d(after, after, kernel_size=3, padding=1), nn.GroupNorm(GROUP, after), nn.SiLU()]
    return nn.Sequential(*layers)


class FromScratch(nn.Module):
    """A variational autoencoder all of which is trained."""

    def __init__(self, image_size: int, latent_dim: int) -> None:
        """Make one with new weights."""
        super().__init__()
        self.encoder = make_encoder()
        shape = self.encoder(torch.zeros(1, 3, image_size, image_size)).shape[1:]
        self.head = tv.GaussianHead(shape, latent_dim=latent_dim)
        self.decoder = tv.residual_decoder((latent_dim,), image_size)

    def forward(self, images: Tensor) -> tv.VAEOutput:
        """Encode, draw, decode."""
        posterior = self.head(self.encoder(images))
        latent = posterior.sample() if self.training else posterior.mode()
        return tv.VAEOutput(self.decoder(latent), posterior, latent)


def main() -> None:
    """Learn."""
    task, clock = read_task(), Clock()
    torch.manual_seed(task.seed)
    vae, objective = FromScratch(task.image_size, task.latent_dim), tv.Objective.parse(VECTOR["objective"])
    pixels, held = (read_photographs(folder, task.image_size) for folder in (task.training, task.held))
    execution = fastest(vae, objective, to_batch(pixels[: task.batch]), clock)
    vae.to(memory_format=execution.torch_memory_format)
    parameters = [*vae.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, fused=True)
    order, steps = np.random.default_rng(task.seed), max(1, task.epochs * (len(pixels) // task.batch))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))

    def judge() -> float:
        vae.eval()
        with torch.no_grad():
            made = [vae(to_batch(held[i : i + 64])).reconstruction for i in range(0, len(held), 64)]
        return mean_psnr(torch.cat(made).permute(0, 2, 3, 1).numpy(), held)

    for _ in range(task.epochs):
        vae.train()
        for batch in shuffled(len(pixels), task.batch, order):
            images = to_batch(pixels[batch]).contiguous(memory_format=execution.torch_memory_format)
            with execution.autocast(torch.device("cpu")):
                value = objective(vae(images), images)
            optimizer.zero_grad()
            value.total.backward()
            nn.utils.clip_grad_norm_(parameters, VECTOR["optimizer"]["clip"])
            optimizer.step()
            schedule.step()
        clock.judge(judge)
        if clock.seconds > task.limit:
            break


def fastest(vae: nn.Module, objective: tv.Objective, images: Tensor, clock: Clock) -> Execution:
    """The precision and memory layout in which a step takes the least time, as the library chooses its own."""
    times: dict[Execution, float] = {}
    for execution in (Execution(), Execution("float32", "channels_last"), Execution("bfloat16", "channels_last")):
        vae.to(memory_format=execution.torch_memory_format)
        spent = []
        for _ in range(TIMED):
            began = clock.seconds
            with execution.autocast(torch.device("cpu")):
                value = objective(vae(images.contiguous(memory_format=execution.torch_memory_format)), images)
            value.total.backward()
            spent.append(clock.seconds - began)
        times[execution] = min(spent)
    vae.zero_grad()
    return min(times, key=lambda execution: times[execution])


if __name__ == "__main__":
    main()
