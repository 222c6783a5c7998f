"""The same model and training step in Keras 3 on TensorFlow, as its own examples write a variational autoencoder."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # the others need memory too

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from protocol import Device, Stage, read_options, serve

BETA = 1e-4
MEAN = (0.485, 0.456, 0.406)
VARIANCE = (0.229**2, 0.224**2, 0.225**2)


class VAE(keras.Model):  # type: ignore[misc]
    """A frozen VGG19, dense layers to mean and log-variance, and a decoder."""

    def __init__(self, image_size: int, latent_dim: int) -> None:
        """Make a model for images `[b, image_size, image_size, 3]` in [0, 1]."""
        super().__init__()
        self.encoder = make_encoder(image_size, latent_dim)
        self.decoder = make_decoder(image_size, latent_dim)
        self.seeds = keras.random.SeedGenerator(0)
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> list[Any]:
        """What Keras resets between epochs."""
        return [self.loss_tracker]

    def train_step(self, data: Any) -> dict[str, Any]:
        """Encode, draw, decode; root mean squared error and KL; one step of the optimiser."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            mean, logvar = self.encoder(images, training=True)
            latent = mean + ops.exp(0.5 * logvar) * keras.random.normal(ops.shape(mean), seed=self.seeds)
            error = ops.square(self.decoder(latent, training=True) - images)
            error = ops.mean(ops.sqrt(ops.mean(error, axis=(1, 2, 3)) + 1e-8))
            kl = 0.5 * ops.mean(ops.sum(ops.square(mean) + ops.exp(logvar) - 1 - logvar, axis=1))
            loss = error + BETA * kl
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


def make_encoder(image_size: int, latent_dim: int) -> keras.Model:
    """Images to mean and log-variance `[b, latent_dim]`."""
    images = keras.Input((image_size, image_size, 3))
    network = keras.applications.VGG19(weights=None, include_top=False, input_shape=(image_size, image_size, 3))
    network.trainable = False
    features = network(layers.Normalization(mean=MEAN, variance=VARIANCE)(images), training=False)
    flat = layers.Flatten()(features)
    return keras.Model(images, [layers.Dense(latent_dim)(flat), layers.Dense(latent_dim)(flat)])


def make_decoder(image_size: int, latent_dim: int, width: int = 128) -> keras.Model:
    """Latents to images: dense to a small grid, then upsampling, convolution, normalisation and SiLU."""
    side, channels = smallest_side(image_size), width
    latent = keras.Input((latent_dim,))
    grid = layers.Reshape((side, side, width))(layers.Dense(side * side * width)(latent))
    grid = layers.Activation("silu")(layers.GroupNormalization(width // 8)(grid))
    while side < image_size:
        side, channels = 2 * side, max(16, channels // 2)
        grid = layers.Conv2D(channels, 3, padding="same")(layers.UpSampling2D()(grid))
        grid = layers.Activation("silu")(layers.GroupNormalization(channels // 8)(grid))
    return keras.Model(latent, layers.Conv2D(3, 3, padding="same", activation="sigmoid")(grid))


def smallest_side(image_size: int) -> int:
    """Halve the side until it is 8 or less."""
    while image_size > 8:
        image_size //= 2
    return image_size


def main() -> None:
    """Serve the training step."""
    options = read_options()
    if options["backbone"] != "vgg19":
        raise SystemExit(f"written for vgg19 alone, not {options['backbone']}")
    if options["threads"]:
        tf.config.threading.set_intra_op_parallelism_threads(options["threads"])
    batch, side = options["batch"], options["image_size"]
    vae = VAE(side, options["latent_dim"])
    vae.compile(optimizer=keras.optimizers.Adam(1e-4))
    images = np.random.default_rng(0).random((batch, side, side, 3), dtype=np.float32)
    stage = Stage(lambda: vae.train_on_batch(images), batch)
    trainable = sum(int(np.prod(weight.shape)) for weight in vae.trainable_weights)
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    serve({"train (live)": stage}, Device(peak=device_peak), trainable=trainable, versions=versions)


def device_peak() -> int | None:
    """Most memory of the accelerator since the start, if there is one."""
    if not tf.config.list_physical_devices("GPU"):
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


if __name__ == "__main__":
    main()
