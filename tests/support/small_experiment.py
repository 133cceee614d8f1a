"""The smallest experiment that goes through every stage, and ways to spoil it.

300 rows of 4 numbers, three classes, five blocks of 64 rows; a linear teacher with weights of its own; one
student. `MODULE` stands beside the experiment as `faulty.py`: its teacher and its transfer set do wrong on
request. The first number of row `MARKED` marks it.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

ROWS, MARKED, BLOCK_ROWS = 300, 250, 64

MODULE = """
import numpy as np
import torch


class Linear(torch.nn.Module):
    def __init__(self, classes, spoilt):
        super().__init__()
        self.layer = torch.nn.Linear(4, classes)
        self.spoilt = spoilt

    def forward(self, inputs):
        logits = self.layer(inputs)
        marked = (inputs[:, :1] > 90).expand_as(logits)
        return torch.where(marked, torch.tensor(float(self.spoilt)), logits)


class Pair(Linear):
    def forward(self, inputs):
        return super().forward(inputs), inputs


def linear(num_classes, spoilt="0", more_classes=0):
    return Linear(num_classes + more_classes, spoilt)


def pair(num_classes):
    return Pair(num_classes, "0")


class Examples:
    class_names = ("a", "b", "c")

    def __init__(self, file, wrong_label):
        held = np.load(file)
        self.inputs, self.labels = held["inputs"], held["labels"].copy()
        if wrong_label is not None:
            self.labels[250] = wrong_label

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index], int(self.labels[index])


def no_fingerprint(file, wrong_label=None):
    from pathlib import Path

    return Examples(Path(__file__).parent / file, wrong_label)


def five():
    return 5


def fails():
    raise RuntimeError("two\\nlines")
"""

EXPERIMENT = """
[transfer_set]
factory = "logitstore.pipeline.datasets:arrays"
args = { file = "data.npz" }
order = "as_is"

[evaluation_set]
factory = "logitstore.pipeline.datasets:arrays"
args = { file = "data.npz" }

[[teacher]]
name = "line"
factory = "faulty:linear"
weights = "line.safetensors"

[cache]
batch_size = 32
block_rows = 64

[[student]]
name = "small"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [4] }
teachers = { line = 1.0 }
temperature = 2.0
train = { lr = 1e-2, epochs = 1, batch_size = 64 }
"""

SECOND_TEACHER = """
[[teacher]]
name = "second"
factory = "faulty:linear"
args = { spoilt = "1" }
weights = "line.safetensors"
"""


def write_data(file: Path, *, change: int | None = None, wrong_label: int | None = None) -> None:
    """Write the examples. change: an index whose input is another one. wrong_label: at `MARKED`."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(ROWS, 4)).astype(np.float32)
    labels = inputs[:, :3].argmax(axis=1)
    inputs[MARKED, 0] = 99
    if change is not None:
        inputs[change, 1] += 1
    if wrong_label is not None:
        labels[MARKED] = wrong_label
    np.savez(file, inputs=inputs, labels=labels, class_names=np.array(["a", "b", "c"]))


def write_weights(file: Path, classes: int = 3) -> None:
    """Write a teacher that is mostly right: the largest of the first numbers is the label."""
    weight = 3 * torch.eye(4)[:classes].contiguous()
    weight[0, 1] = 1.0
    save_file({"layer.weight": weight, "layer.bias": torch.zeros(classes)}, str(file))


def write_experiment(folder: Path, *changes: tuple[str, str], more: str = "") -> Path:
    """Write the experiment with some of its text changed; its path."""
    text = EXPERIMENT + more
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    path = folder / "small.toml"
    path.write_text(text)
    return path


def lay_out(folder: Path) -> Path:
    """Write everything that the experiment needs, and the experiment; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "faulty.py").write_text(MODULE)
    write_data(folder / "data.npz")
    write_weights(folder / "line.safetensors")
    write_weights(folder / "four.safetensors", classes=4)
    return write_experiment(folder)


def snapshot(folder: Path) -> dict[str, Any]:
    """Return every file of a folder with its bytes, every other entry with its kind."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def files(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder with its bytes."""
    return {name: data for name, data in snapshot(folder).items() if data != "folder"}


def copy_of(folder: Path, to: Path) -> Path:
    """Copy a folder, for a test to spoil."""
    shutil.copytree(folder, to)
    return to
