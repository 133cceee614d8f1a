"""What of a damaged store can be mended, and what is to be made again?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Throw away what is torn in a STORE, so that `cache` redoes just that; rebuild what follows from other files.

    A file that is intact is never touched. Nothing is changed while a writer is at work on the same part.

    \b
    Exit codes: 0 nothing is wrong, or nothing that running the writer again does not mend; 1 something is beyond repair.
    """
    from ...storage.backends.local import local_path
    from ...storage.integrity.repair import repair

    path = local_path(store)
    with show_progress(quiet=settings().quiet) as progress:
        done = repair(path, dry_run=dry_run, progress=progress)
    if as_json:
        print_json(_record(path, done))
    else:
        for line in _lines(path, done):
            print_text(line)
    click.get_current_context().exit(done.exit_code)


def _record(path: Path, done: "Repairs") -> dict[str, Any]:
    return {
        "path": path,
        "exit_code": done.exit_code,
        "dry_run": done.dry_run,
        "rebuilt": done.rebuilt,
        "removed": done.removed,
        "adopted": done.adopted,
        "missing": done.missing,
        "blocks": done.blocks,
        "unsealed": done.unsealed,
        "strays": done.strays,
        "beyond": [
            {
                "code": problem.code,
                "where": problem.where,
                "expected": problem.expected,
                "found": problem.found,
                "remedy": problem.remedy,
            }
            for problem in done.beyond
        ],
    }


def _lines(path: Path, done: "Repairs") -> list[str]:
    """What was done, a line each, and what is left to do."""
    would = "would be " if done.dry_run else ""
    lines = [f"{path / key}: {would}rebuilt" for key in done.rebuilt]
    lines += [f"{path / key}: {would}thrown away" for key in done.removed]
    lines += [f"{path / key}: a whole block, {would}given its record" for key in done.adopted]
    lines += [f"{path / key}: put back by what made it" for key in done.missing]
    lines += [f"{path / key}: known to nothing in the store, left where it is" for key in done.strays]
    lines += [" ".join(str(problem).split()) for problem in done.beyond]
    for part, count in done.blocks.items():
        blocks = f"{count:,} block{'s' if count > 1 else ''}"
        lines.append(f"{path}: {part}: {blocks} to be made again; run `logitstore cache` (or `run`) again")
    lines += [f"{path}: {part}: begun and not sealed; what was writing it goes on" for part in done.unsealed]
    if done.beyond:
        verdict = "beyond repair in part: restore from a copy what is named above"
    elif done.blocks or done.missing:
        verdict = "mended as far as files go; the rest is to be made again"
    elif done.rebuilt or done.removed or done.adopted:
        verdict = "mended"
    else:
        verdict = "nothing to repair"
    return [*lines, f"{path}: {verdict}"]
