"""A trained student as a network to use: `logitstore.load_student`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage.extras import naming_extras
from .calling import local_folder

if TYPE_CHECKING:
    from torch import nn


@naming_extras()
def load_student(
    experiment: "str | os.PathLike[str]",
    name: str,
    *,
    seed: int | None = None,
    out: "str | os.PathLike[str] | None" = None,
    models: "str | os.PathLike[str] | None" = None,
) -> "nn.Module":
    """Load a student that an experiment has trained, on the CPU, in evaluation mode.

    It takes inputs (batch, …) as the transfer set gives them to logits (batch, classes): a network of `timm`, `torchvision`
    or `hugging_face` takes uint8 pixels as well. The store is not needed.

    experiment: the experiment file. Its factory is called, so name a file that you trust; the folder of the models is data.
    name: name of the student.
    seed: one of its seeds; by default the first.
    out: folder of the run; by default `runs/` and the name of the file.
    models: folder of the models; by default `models` in `out`.

    Returns the network. One of `hugging_face` has `save_pretrained(folder)`.
    Raises ConfigError for a name or a seed that the file does not have; BadDataError for a student that is not trained, or
    whose weights are not those of its record; SpecMismatch if the file has another network for it than was trained.
    """
    from ..pipeline.in_hand.trained import trained_student

    return trained_student(
        Path(experiment),
        name,
        seed=seed,
        out=local_folder("out", out),
        models=local_folder("models", models),
    )
