"""The library's reader of photographs, on one core."""

import torch
from protocol import Stage, read_options, serve

from transfervae.data import ImageFolder


def main() -> None:
    """Serve a pass over the folder."""
    options = read_options()
    torch.set_num_threads(1)
    folder = ImageFolder(options["folder"], options["image_size"], dtype=torch.uint8, verify=False)

    def read_all() -> None:
        for index in range(len(folder)):
            folder[index]

    serve({"reader": Stage(read_all, len(folder))})


if __name__ == "__main__":
    main()
