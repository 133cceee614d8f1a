"""Logits as somebody else would save them, for tests of imports."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

ROWS: Final = 37
CLASSES: Final = 5
EVERY: Final = slice(None)


def centred(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Return logits less the largest of each row."""
    return np.asarray((logits - logits.max(axis=1, keepdims=True)).astype(np.float32))


def saved(folder: Path, logits: NDArray[np.float32], form: str) -> list[Path]:
    """Save logits as somebody else would; return the files in order."""
    tensor = torch.from_numpy(logits)
    half = len(logits) // 2
    if form == "npy":
        np.save(folder / "a.npy", logits)
    elif form == "npy in Fortran order":
        np.save(folder / "a.npy", np.asfortranarray(logits))
    elif form == "big-endian npy":
        np.save(folder / "a.npy", logits.astype(">f4"))
    elif form == "two npy":
        np.save(folder / "a.npy", logits[:half])
        np.save(folder / "b.npy", logits[half:].astype(np.float64))
    elif form == "pt":
        torch.save(tensor, folder / "a.pt")
    elif form == "bfloat16 pt":
        torch.save(tensor.bfloat16(), folder / "a.pt")
    elif form == "old pt":
        torch.save(tensor, folder / "a.pth", _use_new_zipfile_serialization=False)
    elif form == "dict pt":
        torch.save({"epoch": 3, "logits": tensor, "features": torch.zeros(3, 7)}, folder / "a.pt")
    elif form == "parameter pt":
        torch.save(torch.nn.Parameter(tensor), folder / "a.pt")
    elif form == "safetensors":
        safetensors.torch.save_file({"anything": tensor}, folder / "a.safetensors")
    elif form == "bfloat16 safetensors":
        safetensors.torch.save_file({"logits": tensor.bfloat16(), "x": tensor}, folder / "a.safetensors")
    return sorted(folder.glob("[ab].*"))
