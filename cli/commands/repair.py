"""`logitstore repair`: the mending of a damaged store."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..options import dry_run_option, examples, json_option, settings, store_argument, verbosity_options
from ..printing.progress import show_progress
from ..printing.text import print_json, print_text

if TYPE_CHECKING:
    from ...storage.integrity.repair import Repairs


@click.command(
    "repair",
    epilog=examples(
        "logitstore repair logitstore-demo/store.zarr --dry-run",
        "logitstore repair logitstore-demo/store.zarr",
    ),
)
@verbosity_options
@store_argument
@dry_run_option
@json_option
def command(store: str, dry_run: bool, as_json: bool) -> None:
    """Remove torn files of a STORE, so that `cache` makes just them again; rebuild files that follow from others.

    An intact file is never touched. A part is not changed while a writer is at work on it.

    \b
    Exit codes: 0 no fault, or none that is left once the writer has run again; 1 a fault is beyond repair.
    """
    from ...storage.backends.local import local_path
    from ...storage.integrity.repair import repair

    path = local_path(store)
    with show_progress(quiet=settings().quiet) as progress:
        done = repair(path, dry_run=dry_run, progress=progress)
    if as_json:
        beyond = [{"code": problem.code, **vars(problem)} for problem in done.beyond]
        print_json({"path": path, "exit_code": done.exit_code, **vars(done), "beyond": beyond})
    else:
        for line in _lines(path, done):
            print_text(line)
    click.get_current_context().exit(done.exit_code)


def _lines(path: Path, done: "Repairs") -> list[str]:
    """Return a line for each change, and for each thing that is left to do."""
    would = "would be " if done.dry_run else ""
    lines = [f"{path / key}: {would}rebuilt" for key in done.rebuilt]
    lines += [f"{path / key}: {would}removed" for key in done.removed]
    lines += [f"{path / key}: lost record of a whole block, {would}written again" for key in done.adopted]
    lines += [f"{path / key}: missing; run the command again that wrote it" for key in done.missing]
    lines += [f"{path / key}: listed by no seal, left alone" for key in done.strays]
    lines += [" ".join(str(problem).split()) for problem in done.beyond]
    for part, count in done.blocks.items():
        blocks = f"{count:,} block{'s' if count > 1 else ''}"
        lines.append(f"{path}: {part}: {blocks} missing; run `logitstore cache` (or `run`) again")
    lines += [
        f"{path}: {part}: begun and not sealed; run the command again that began it" for part in done.unsealed
    ]
    if done.beyond:
        verdict = "in part beyond repair; restore the files named above from a copy"
    elif done.blocks or done.missing:
        verdict = "mended, but for missing files"
    elif done.rebuilt or done.removed or done.adopted:
        verdict = "mended"
    else:
        verdict = "nothing to repair"
    return [*lines, f"{path}: {verdict}"]
