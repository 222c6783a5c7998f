"""Images: from folders, and drawn."""

from transfervae.data.folder import ImageFolder
from transfervae.data.image_file import read_image
from transfervae.data.toyfaces import ToyFace, ToyFaceFactors, ToyFaces

__all__ = ["ImageFolder", "ToyFace", "ToyFaceFactors", "ToyFaces", "read_image"]
