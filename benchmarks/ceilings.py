"""What the machine itself can do: a large matrix product in each precision, and a large copy."""

import torch
from counting import torch_device
from protocol import Stage, read_options, serve
from torch import Tensor

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIDE = {"cpu": 2048, "cuda": 8192}
COPIED = {"cpu": 2**29, "cuda": 2**31}
QUICK = 4
"""What sides and bytes are divided by for a quick run."""


def main() -> None:
    """Serve the stages."""
    options = read_options()
    device = torch.device(options["device"])
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    torch.backends.cuda.matmul.allow_tf32 = True  # as torch's convolutions compute float32 there by default
    scale = QUICK if options["quick"] else 1
    stages = {f"matrix product {name}": product(name, device, scale) for name in options["precisions"]}
    serve({**stages, "copy": copy(device, scale)}, torch_device(device))


def product(precision: str, device: torch.device, scale: int) -> Stage:
    """Multiply two square matrices."""
    side = SIDE.get(device.type, SIDE["cpu"]) // scale
    left, right = (torch.randn(side, side, device=device).to(PRECISIONS[precision]) for _ in range(2))
    result = torch.empty_like(left)

    def run() -> Tensor:
        return torch.mm(left, right, out=result)

    return Stage(run, images=0, flops=2.0 * side**3)


def copy(device: torch.device, scale: int) -> Stage:
    """Copy bytes; they are read once and written once."""
    count = COPIED.get(device.type, COPIED["cpu"]) // (scale * 4)
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    return Stage(lambda: target.copy_(source), images=0, traffic=8.0 * count)


if __name__ == "__main__":
    main()
