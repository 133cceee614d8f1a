"""Two operators that torchvision expects of its compiled part, declared where that part does not load.

The wheels of torchvision are built for CUDA. Beside a CPU build of torch their library fails to load, and the import of
torchvision then fails, because it describes operators that nobody has declared. No classifier uses them. `make
test-integrations` copies this module into its environment with a `.pth` file, so that every process gets it.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[Any] = []
"""The declarations, which end with their object."""


class _Finder:
    """An entry of `sys.meta_path` that declares the operators at the first import of torchvision."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing: the other entries find the package."""
        if name == "torchvision":
            sys.meta_path.remove(self)  # type: ignore[arg-type]
            declare()


def declare() -> None:
    """Declare the operators unless the compiled library of torchvision provides them."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
            return
        except OSError:  # built for another torch, such as one with CUDA
            continue
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(name + _ARGUMENTS)
    _kept.append(operators)


sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
