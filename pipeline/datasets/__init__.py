"""Transfer sets that come with logitstore: arrays, IDX files, folders of images, digits, sets of other libraries.

`digits` needs no file, `idx` reads MNIST's format, `image_folder` class folders or a zip of them, `arrays`
an `.npz`. `torchvision` and `hugging_face` open data sets of these libraries. Each is a factory:
`factory = "logitstore.pipeline.datasets:idx"` in an experiment. Any other map-style data set does as well;
`pil_images` wraps one of Pillow images.
"""

from .arrays import ArrayDataset, TransferSet, arrays
from .digits import digits
from .idx import idx
from .image_folder import ImageFolder, image_folder
from .pictures import PictureSet, hugging_face, pil_images, torchvision
from .stored_images import stored_images

__all__ = [
    "ArrayDataset",
    "ImageFolder",
    "PictureSet",
    "TransferSet",
    "arrays",
    "digits",
    "hugging_face",
    "idx",
    "image_folder",
    "pil_images",
    "stored_images",
    "torchvision",
]
