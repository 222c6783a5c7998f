"""Images: from folders, and drawn."""

from transfervae.data.folder import ImageFolder
from transfervae.data.image_file import read_image, read_pixels
from transfervae.data.item_record import ItemRecord
from transfervae.data.toyfaces import ToyFace, ToyFaceFactors, ToyFaces

__all__ = ["ImageFolder", "ItemRecord", "ToyFace", "ToyFaceFactors", "ToyFaces", "read_image", "read_pixels"]
