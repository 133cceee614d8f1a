"""Transfer sets that come with logitstore: arrays, IDX files, folders of images, digits.

`digits` needs no file, `idx` reads MNIST's format, `image_folder` class folders or a zip of them, `arrays`
an `.npz`. Each is a factory: `factory = "logitstore.pipeline.datasets:idx"` in an experiment. Any other
map-style data set does as well.
"""

from .arrays import ArrayDataset, TransferSet, arrays
from .digits import digits
from .idx import idx
from .image_folder import ImageFolder, image_folder

__all__ = ["ArrayDataset", "ImageFolder", "TransferSet", "arrays", "digits", "idx", "image_folder"]
