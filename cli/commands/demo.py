"""The command `demo`: the whole pipeline on data that every installation has.

The experiment is written to a file, so that it can be changed, and run as `logitstore run` would run it.
"""

import os
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

from .. import options
from ..printing.text import print_text
from .run import run_experiment

DIGITS_TOML = Path(__file__).with_name("digits.toml").read_text("utf-8")
"""The experiment that `logitstore demo` writes and runs."""


@options.subcommand("demo", "logitstore demo", "logitstore demo --out digits")
@options.out_option
@options.device_option
def command(out: Path | None, device: str | None) -> None:
    """Run the whole pipeline on the digits of scikit-learn in under a minute; no file is needed.

    Trains three small teachers and caches their logits. Clusters the classes and counts the errors that the
    sets hold. Trains one student from a tenth of the labels, and the same one from the teachers' logits on the
    same rows. The experiment, the store and the models go to --out, logitstore-demo by default.
    """
    from ...pipeline.experiment.document import parse_experiment
    from ...pipeline.workspace import STORE, open_existing
    from ...storage.backends.posix import replace_file
    from ...storage.errors import ConfigError

    # Before torch is imported: nets this small are slower on several threads than on one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path("logitstore-demo") if out is None else out
    file, store_path = folder / "digits.toml", folder / STORE
    open_existing(store_path)  # raises for another store's place before the first file is written
    if not file.exists():
        replace_file(file, DIGITS_TOML.encode())
    elif file.read_bytes() != DIGITS_TOML.encode():
        # An experiment names code that is run, and nobody named this file.
        raise ConfigError(
            str(file),
            expected="the experiment of this demo, to the letter",
            found="another text",
            remedy=f"run it by `logitstore run {shlex.quote(str(file))} --out {shlex.quote(str(folder))}` if you wrote it, "
            "or choose another --out",
        )
    # The text is run, not the file, which somebody else may write meanwhile.
    experiment = parse_experiment(tomllib.loads(DIGITS_TOML), where=str(file), base=folder)
    run_experiment(experiment, folder, device=device)
    program = _program()
    store, toml, there = (shlex.quote(str(path)) for path in (store_path, file, folder))
    print_text(
        "",
        "to look at it:",
        f"  {program} inspect {store}",
        f"  {program} verify {store} --deep",
        f"  {program} run {toml} --out {there}    # after you set another temperature of the student",
    )


def _program() -> str:
    """Return the command that calls logitstore from here: its name if the PATH has it, else its path."""
    beside = Path(sys.executable).with_name("logitstore")
    if shutil.which("logitstore") is not None or not beside.exists():
        return "logitstore"
    return shlex.quote(os.path.relpath(beside))
