"""Augmentations that anyone can replay: each view of a row follows from (seed, view, row).

    draws          every (seed, view, row) has random numbers of its own, which depend on nothing else: not on the
                   batch, the order, the process or the number of draws made for other rows
    rows           `augment_rows`: each row of a batch gets its generator, or all of them their numbers at once;
                   a row that is made twice must come out the same
    images         `shift`, `crop_flip`, `identity`
    mixing         `mixup`: a row and another one, both found again from the same numbers
    torch_seed     `torch_seeded`, for functions that draw from a `torch.Generator`
    versions       `source_version`: what says that an augmentation still makes what it made

So the input that a teacher saw can be replayed next to its stored logits, one row at a time. Views below `first_view`
are the rows as they are. Needs no torch, but for `torch_seeded`.
"""

from ...storage.random import raw_words, row_generator
from .images import CropFlip, Identity, Shift, crop_flip, identity, shift
from .mixing import Mixup, mixup
from .rows import Augmentation, BlockAugmentation, OtherRows, PairAugmentation, augment_rows
from .torch_seed import torch_seeded
from .versions import source_version

__all__ = [
    "Augmentation",
    "BlockAugmentation",
    "CropFlip",
    "Identity",
    "Mixup",
    "OtherRows",
    "PairAugmentation",
    "Shift",
    "augment_rows",
    "crop_flip",
    "identity",
    "mixup",
    "raw_words",
    "row_generator",
    "shift",
    "source_version",
    "torch_seeded",
]
