"""Encode and decode of diffusers' `AutoencoderRAE`, or of ours with the same random weights."""

from collections.abc import Callable

import torch
from counting import counted, random_images, torch_device
from diffusers.models.autoencoders.autoencoder_rae import AutoencoderRAE
from protocol import read_options, serve
from torch import Tensor, nn

SIDE = 224
CONFIG = {
    "encoder_type": "dinov2",
    "encoder_hidden_size": 384,
    "encoder_patch_size": 14,
    "encoder_num_hidden_layers": 12,
    "encoder_input_size": SIDE,
    "decoder_hidden_size": 384,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 6,
    "decoder_intermediate_size": 1536,
    "patch_size": 14,
    "image_size": SIDE,
}
"""A small DINOv2 and a decoder of its size, 16x16 tokens."""

Part = Callable[[Tensor], Tensor]


def main() -> None:
    """Serve the two stages of one side."""
    options = read_options()
    device = torch.device(options["device"])
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    theirs = AutoencoderRAE(**CONFIG).eval()
    encode, decode = their_parts(theirs, device) if options["side"] == "diffusers" else own_parts(theirs, device)
    images = random_images(options["batch"], SIDE, device)
    with torch.inference_mode():
        latents = encode(images)
    stages = {
        "RAE encode": counted(torch.inference_mode()(lambda: encode(images)), len(images)),
        "RAE decode": counted(torch.inference_mode()(lambda: decode(latents)), len(images)),
    }
    serve(stages, torch_device(device))


def their_parts(theirs: AutoencoderRAE, device: torch.device) -> tuple[Part, Part]:
    """The encoder and decoder of diffusers."""
    nn.Module.to(theirs, device)
    return lambda images: theirs.encode(images).latent, lambda latents: theirs.decode(latents).sample


def own_parts(theirs: AutoencoderRAE, device: torch.device) -> tuple[Part, Part]:
    """Ours, on diffusers' weights."""
    from transfervae.interop import load_diffusers_rae

    vae = load_diffusers_rae((dict(theirs.config), theirs.state_dict())).to(device)
    return lambda images: vae.encode(images).mode(), vae.decode


if __name__ == "__main__":
    main()
