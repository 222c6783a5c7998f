"""Keras 3 on TensorFlow: an encoder learnt from scratch, as in Keras' own example, and the decoder of the baselines."""

from typing import Any

import keras
import numpy as np
from baselines.keras_tensorflow import VAE, make_decoder
from keras import layers

from learners.common import Clock, mean_psnr, read_photographs, read_task

RATE = 1e-3
WIDTHS = (32, 64, 128)


class FromScratch(VAE):
    """Convolutions of stride 2, dense layers to mean and log-variance, and a decoder."""

    def __init__(self, image_size: int, latent_dim: int) -> None:
        """Make a model for images `[b, image_size, image_size, 3]` in [0, 1]."""
        keras.Model.__init__(self)
        self.encoder = make_encoder(image_size, latent_dim)
        self.decoder = make_decoder(image_size, latent_dim)
        self.seeds = keras.random.SeedGenerator(0)
        self.loss_tracker = keras.metrics.Mean(name="loss")


def make_encoder(image_size: int, latent_dim: int) -> Any:
    """Images to mean and log-variance `[b, latent_dim]`."""
    images = keras.Input((image_size, image_size, 3))
    grid = images
    for width in WIDTHS:
        grid = layers.Conv2D(width, 3, strides=2, padding="same")(grid)
        grid = layers.Activation("silu")(layers.GroupNormalization(8)(grid))
    flat = layers.Flatten()(grid)
    return keras.Model(images, [layers.Dense(latent_dim)(flat), layers.Dense(latent_dim)(flat)])


def main() -> None:
    """Learn."""
    task, clock = read_task(), Clock()
    keras.utils.set_random_seed(task.seed)
    vae = FromScratch(task.image_size, task.latent_dim)
    vae.compile(optimizer=keras.optimizers.Adam(RATE))
    pixels, held = (read_photographs(folder, task.image_size) for folder in (task.training, task.held))
    images = pixels.astype(np.float32) / 255

    def judge() -> float:
        means = vae.encoder.predict(held.astype(np.float32) / 255, batch_size=64, verbose=0)[0]
        return mean_psnr(vae.decoder.predict(means, batch_size=64, verbose=0), held)

    for _ in range(task.epochs):
        vae.fit(images, batch_size=task.batch, epochs=1, verbose=0)
        clock.judge(judge)
        if clock.seconds > task.limit:
            break


if __name__ == "__main__":
    main()
