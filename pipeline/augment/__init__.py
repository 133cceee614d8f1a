"""Augmentations that anyone can replay: each view of a row follows from (seed, view, row).

    rows           `augment_rows`: every row has random numbers of its own, independent of batch, order and process;
                   a row that is augmented twice must give the same bytes
    images         `shift`, `crop_flip`, `identity`
    crops          `random_resized_crop`: a part of the whole image, resized to the size of the views
    mixing         `mixup`, `cutmix`: a row mixed with a partner, which follows from the same numbers
    torch_seed     `torch_seeded`, for functions that draw from a `torch.Generator`
    transforms     `seeded`: transforms of torchvision and albumentations; `rand_augment`
    versions       `source_version`: the version of an augmentation, in place of the digest of its file

So a student replays the input of the teacher for each stored row. Views below `first_view` are the rows themselves.
Only `torch_seeded`, `seeded` and `rand_augment` need torch.
"""

from ...storage.random import raw_words, row_generator
from .crops import RandomResizedCrop, random_resized_crop
from .images import CropFlip, Identity, Shift, crop_flip, identity, shift
from .mixing import Cutmix, Mixup, cutmix, mixup
from .rows import Augmentation, BlockAugmentation, OtherRows, PairAugmentation, augment_rows
from .torch_seed import torch_seeded
from .transforms import Seeded, rand_augment, seeded
from .versions import source_version

__all__ = [
    "Augmentation",
    "BlockAugmentation",
    "CropFlip",
    "Cutmix",
    "Identity",
    "Mixup",
    "OtherRows",
    "PairAugmentation",
    "RandomResizedCrop",
    "Seeded",
    "Shift",
    "augment_rows",
    "crop_flip",
    "cutmix",
    "identity",
    "mixup",
    "rand_augment",
    "random_resized_crop",
    "raw_words",
    "row_generator",
    "seeded",
    "shift",
    "source_version",
    "torch_seeded",
]
