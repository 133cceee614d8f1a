"""`logitstore demo`: the whole pipeline on data that every installation has.

The experiment is written to a file, so that it can be changed, and run as `logitstore run` would run it.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

import click

from ..options import device_option, examples, out_option, verbosity_options
from ..printing.text import print_text
from .run import run_experiment

DIGITS_TOML = """\
# The whole pipeline on the digits that scikit-learn ships: 8 x 8 pixels, ten classes.
# Change what you like and run it again: only what follows from the change is done anew.
# Temperatures, epochs and sets were chosen on held-out rows of the training split, none on the evaluation
# set (experiments/demo_selection.py).

[transfer_set]                          # the teachers are run on it, once
factory = "logitstore.pipeline.datasets:digits"
args = { split = "train" }              # 1,297 images

[evaluation_set]                        # every score is measured on it
factory = "logitstore.pipeline.datasets:digits"
args = { split = "test" }               # 500 images

# Three teachers, trained from all labels; two of them on digits that are shifted by a pixel at most.

[[teacher]]
name = "wide"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [400, 400], dropout = 0.5, input_dropout = 0.2 }

[teacher.train]
lr = 2e-3
epochs = 40
batch_size = 64
schedule = "cosine"
augment = { factory = "logitstore.pipeline.augment:shift", args = { pixels = 1 } }

[[teacher]]
name = "plain"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [300, 300], dropout = 0.3, input_dropout = 0.1 }
train = { lr = 2e-3, epochs = 40, batch_size = 64, schedule = "cosine" }

[[teacher]]
name = "conv"
factory = "logitstore.pipeline.models:convnet"
args = { channels = [32, 64], hidden = [64], dropout = 0.3 }

[teacher.train]
lr = 3e-3
epochs = 40
batch_size = 64
schedule = "cosine"
augment = { factory = "logitstore.pipeline.augment:shift", args = { pixels = 1 } }

[cache]                                 # stage one: their logits, not their probabilities
encoding = "float16"
views = 4                               # the digits as they are, and three times shifted by a pixel at most
augment = { factory = "logitstore.pipeline.augment:shift", args = { pixels = 1 } }

[cluster]                               # stage two: which digits are confused with one another?
teachers = ["wide", "plain", "conv"]
temperature = 4.0
normalise = true                        # cluster correlations: a rarely confused digit counts as much
clusters = 4                            # of the teachers' errors on the evaluation set, how many do they hold?
classes_per_cluster = 3

# Stage three: one small student, five seeds each time. First from all 1,297 labels, for comparison. Then
# from a tenth of the rows, another tenth for each seed: from their 130 labels, or from the teachers' logits
# on the same 130 rows, without a label. All of them take about as many steps.

[[student]]
name = "all-labels"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [100, 100] }
targets = "hard"
views = 0
train = { lr = 3e-3, epochs = 40, batch_size = 64, schedule = "cosine", seeds = [0, 1, 2, 3, 4] }

[[student]]
name = "hard"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [100, 100] }
targets = "hard"
rows = 0.1
views = 0
train = { lr = 3e-3, epochs = 400, batch_size = 65, schedule = "cosine", seeds = [0, 1, 2, 3, 4] }

[[student]]
name = "distilled"
factory = "logitstore.pipeline.models:mlp"
args = { hidden = [100, 100] }
teachers = { wide = 1.0, plain = 1.0, conv = 1.0 }      # shares in the ensemble
temperature = 4.0                       # try another one: the store stays as it is
rows = 0.1
views = 0
train = { lr = 3e-3, epochs = 400, batch_size = 65, schedule = "cosine", seeds = [0, 1, 2, 3, 4] }
"""
"""The experiment that `logitstore demo` writes and runs."""


@click.command("demo", epilog=examples("logitstore demo", "logitstore demo --out digits"))
@verbosity_options
@out_option
@device_option
def command(out: Path | None, device: str | None) -> None:
    """Run the whole pipeline on the digits of scikit-learn, under a minute: no file is needed.

    Trains three small teachers and caches their logits. Clusters the classes and counts the errors that the
    sets hold. Trains one student from a tenth of the labels, and the same one from the teachers' logits on the
    same rows. The experiment, the store and the models go to --out, logitstore-demo by default.
    """
    from ...pipeline.experiment.document import load_experiment
    from ...pipeline.workspace import STORE, open_existing
    from ...storage.backends.posix import replace_file

    # Before torch is imported: nets this small are slower on several threads than on one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path("logitstore-demo") if out is None else out
    file, store_path = folder / "digits.toml", folder / STORE
    # Before the first file is written: does something else have the store's place?
    open_existing(store_path)
    if not file.exists():
        replace_file(file, DIGITS_TOML.encode())
    elif file.read_bytes() != DIGITS_TOML.encode():
        click.echo(f"{file} is there already and is taken as it stands", err=True)
    run_experiment(load_experiment(file), folder, device=device)
    program = _program()
    store, toml, there = (shlex.quote(str(path)) for path in (store_path, file, folder))
    print_text()
    print_text("to look at it:")
    print_text(f"  {program} inspect {store}")
    print_text(f"  {program} verify {store} --deep")
    print_text(f"  {program} run {toml} --out {there}    # after you set another temperature of the student")


def _program() -> str:
    """Return the command that calls logitstore from here: its name if the PATH has it, else its path."""
    beside = Path(sys.executable).with_name("logitstore")
    if shutil.which("logitstore") is not None or not beside.exists():
        return "logitstore"
    return shlex.quote(os.path.relpath(beside))
