"""Images: from folders, drawn, and from any other data set."""

from transfervae.data.dataset import ImageDataset, ItemRecord, JoinedImages, SelectedImages
from transfervae.data.folder import ImageFolder
from transfervae.data.image_file import read_image, read_pixels
from transfervae.data.open import open_dataset
from transfervae.data.toyfaces import ToyFace, ToyFaceFactors, ToyFaces

__all__ = [
    "ImageDataset",
    "ImageFolder",
    "ItemRecord",
    "JoinedImages",
    "SelectedImages",
    "ToyFace",
    "ToyFaceFactors",
    "ToyFaces",
    "open_dataset",
    "read_image",
    "read_pixels",
]
