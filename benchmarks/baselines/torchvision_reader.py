"""A folder of photographs read by torchvision, as its own examples read ImageNet."""

import torch
from protocol import Stage, read_options, serve
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor


def main() -> None:
    """Serve a pass over the folder."""
    options = read_options()
    torch.set_num_threads(1)
    size = options["image_size"]
    folder = ImageFolder(options["folder"], Compose([Resize(size), CenterCrop(size), ToTensor()]))

    def read_all() -> None:
        for index in range(len(folder)):
            folder[index]

    serve({"reader": Stage(read_all, len(folder))})


if __name__ == "__main__":
    main()
