"""VGG19 with the weights that Keras publishes, or that were trained with it."""

import os
from collections.abc import Sequence

from transfervae.backbones import FrozenBackbone, create_backbone
from transfervae.backbones._keras_vgg19 import NAME


def load_keras_vgg19(path: str | os.PathLike[str], *, node: str | Sequence[str] = "block5_pool") -> FrozenBackbone:
    """Load VGG19 from Keras' HDF5 weights, with Keras' preprocessing inside.

    Short for `create_backbone("keras_vgg19", node=node, weights=path)`, by which saved models find it again.

    Args:
        path: A file in Keras' first HDF5 layout, with or without the classifier: a published one, such as
            `vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5`, or what `model.save("name.h5")` wrote.
        node: Where the features are read; several nodes are fused. Names as for the backbone `vgg19`.

    Returns:
        The frozen backbone: RGB images in [0, 1] to features, on the CPU.

    Raises:
        UnknownNameError: For a node that does not exist.
        CheckpointError: If the file is missing, damaged, no HDF5, or in another layout.
        WeightsMismatchError: If it is no VGG19; the first three misfits are named.
        MissingExtraError: Without the extra `keras`.
    """
    return create_backbone(NAME, node=node, weights=path)
