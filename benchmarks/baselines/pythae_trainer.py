"""The same networks trained by pythae's own trainer, with its own objective (squared error and KL)."""

import logging
import tempfile

import torch
from counting import random_images, torch_device
from protocol import Stage, read_options, serve
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor

from baselines.plain_torch import Networks, build

BATCHES = 2


class Encoder(BaseEncoder):  # type: ignore[misc]
    """The hand-written encoder in pythae's interface."""

    def __init__(self, networks: Networks) -> None:
        """Wrap it."""
        super().__init__()
        self.network = networks.encoder

    def forward(self, images: Tensor) -> ModelOutput:
        """Images to moments."""
        mean, logvar = self.network(images)
        return ModelOutput(embedding=mean, log_covariance=logvar)


class Decoder(BaseDecoder):  # type: ignore[misc]
    """The hand-written decoder in pythae's interface."""

    def __init__(self, networks: Networks) -> None:
        """Wrap it."""
        super().__init__()
        self.network = networks.decoder

    def forward(self, latent: Tensor) -> ModelOutput:
        """Latents to images."""
        return ModelOutput(reconstruction=self.network(latent))


def main() -> None:
    """Serve the training step: an epoch of two batches."""
    options = read_options()
    device = torch.device(options["device"])
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options, folder)
        count = BATCHES * options["batch"]
        trainable = sum(value.numel() for value in trainer.model.parameters() if value.requires_grad)
        stage = Stage(lambda: trainer.train_step(epoch=1), count)
        serve({"train (live)": stage}, torch_device(device), trainable=trainable)


def make_trainer(options: dict[str, int | str], folder: str) -> BaseTrainer:
    """A trainer of pythae, ready to run."""
    side, latent_dim, batch = (int(options[name]) for name in ("image_size", "latent_dim", "batch"))
    networks = build(str(options["backbone"]), side, latent_dim)
    model = VAE(VAEConfig(input_dim=(3, side, side), latent_dim=latent_dim), Encoder(networks), Decoder(networks))
    images = random_images(BATCHES * batch, side, torch.device("cpu"))
    config = BaseTrainerConfig(
        output_dir=folder,
        per_device_train_batch_size=batch,
        learning_rate=1e-4,
        no_cuda=options["device"] == "cpu",
    )
    trainer = BaseTrainer(model, BaseDataset(images, torch.zeros(len(images))), training_config=config)
    trainer.prepare_training()
    return trainer


if __name__ == "__main__":
    main()
