"""The command `repair`: the mending of a damaged store."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import options
from ..printing.progress import show_progress
from ..printing.text import print_json, print_text

if TYPE_CHECKING:
    from ...storage.integrity.repair import Repairs


@options.subcommand(
    "repair",
    "logitstore repair logitstore-demo/store.zarr --dry-run",
    "logitstore repair logitstore-demo/store.zarr",
)
@options.store_argument
@options.dry_run_option
@options.json_option
def command(store: str, dry_run: bool, as_json: bool) -> None:
    """Remove torn files of a STORE, so that `cache` makes just them again; rebuild files that follow from others.

    An intact file is never touched. A part is not changed while a writer is at work on it.

    \b
    Exit codes: 0 no fault, or none that is left once the writer has run again; 1 a fault is beyond repair.
    """
    from ...storage.backends.local import local_path
    from ...storage.integrity.repair import repair

    path = local_path(store)
    with show_progress(quiet=options.settings().quiet) as progress:
        done = repair(path, dry_run=dry_run, progress=progress)
    if as_json:
        print_json({"path": path, "exit_code": done.exit_code, **vars(done)})
    else:
        print_text(*_lines(path, done))
    click.get_current_context().exit(done.exit_code)


def _lines(path: Path, done: "Repairs") -> Iterator[str]:
    """Yield a line for each change, and for each thing that is left to do."""
    would = "would be " if done.dry_run else ""
    for keys, outcome in (
        (done.rebuilt, f"{would}rebuilt"),
        (done.removed, f"{would}removed"),
        (done.adopted, f"lost record of a whole block, {would}written again"),
        (done.missing, "missing; run the command again that wrote it"),
        (done.freed, f"the rest of a removed part, {would}removed"),
        (done.strays, "listed by no seal, left alone"),
    ):
        yield from (f"{path / key}: {outcome}" for key in keys)
    yield from (" ".join(str(problem).split()) for problem in done.beyond)
    for part, count in done.blocks.items():
        blocks = f"{count:,} block{'s' if count > 1 else ''}"
        yield f"{path}: {part}: {blocks} missing; run `logitstore cache` (or `run`) again"
    for part in done.unsealed:
        yield f"{path}: {part}: begun and not sealed; run the command again that began it"
    verdict = "nothing to repair"
    if done.beyond:
        verdict = "in part beyond repair; restore the files named above from a copy"
    elif done.blocks or done.missing:
        verdict = "mended, but for missing files"
    elif done.rebuilt or done.removed or done.adopted or done.freed:
        verdict = "mended"
    yield f"{path}: {verdict}"
