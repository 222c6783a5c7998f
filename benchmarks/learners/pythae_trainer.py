"""pythae: its trainer and objective on the networks of `plain_torch.py`."""

import logging
import tempfile

import torch
from baselines.pythae_trainer import Decoder, Encoder
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.trainers import BaseTrainer, BaseTrainerConfig

from learners.common import Clock, read_photographs, read_task
from learners.plain_torch import RATE, build, judge, to_batch


def main() -> None:
    """Learn."""
    task, clock = read_task(), Clock()
    logging.disable(logging.WARNING)
    torch.manual_seed(task.seed)
    networks = build(task.image_size, task.latent_dim)
    side = task.image_size
    model = VAE(VAEConfig(input_dim=(3, side, side), latent_dim=task.latent_dim), Encoder(networks), Decoder(networks))
    pixels, held = (read_photographs(folder, side) for folder in (task.training, task.held))
    images = to_batch(pixels)
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder, per_device_train_batch_size=task.batch, learning_rate=RATE, no_cuda=True
        )
        trainer = BaseTrainer(model, BaseDataset(images, torch.zeros(len(images))), training_config=config)
        trainer.prepare_training()
        for epoch in range(task.epochs):
            trainer.train_step(epoch=epoch + 1)
            model.eval()
            clock.judge(lambda: judge(networks, held))
            if clock.seconds > task.limit:
                break


if __name__ == "__main__":
    main()
