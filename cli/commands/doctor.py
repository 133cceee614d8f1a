"""`logitstore doctor`: tests whether a disk is safe for several writers."""

from pathlib import Path

import click

from ..options import examples, json_option, verbosity_options
from ..printing.stores import format_bytes
from ..printing.text import print_json, print_table, print_text


@click.command(
    "doctor",
    epilog=examples("logitstore doctor .", "logitstore doctor /scratch --rounds 10000 --json"),
)
@verbosity_options
@click.argument("path", type=click.Path(path_type=Path), metavar="PATH")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Races of two processes for a name.",
)
@json_option
def command(path: Path, rounds: int, as_json: bool) -> None:
    """Test whether several processes may write a store in the folder PATH at once.

    Two processes try the operations that writers need, in a temporary folder inside PATH.

    \b
    Exit codes: 0 safe for several writers, 1 one writer at a time or unsafe, 4 PATH is not writable.
    """
    from ...storage.errors import StorageError
    from ...storage.integrity.doctor import IO_ERROR, examine

    try:
        findings = examine(path, rounds=rounds)
    except StorageError as error:
        click.echo("logitstore: " + " ".join(str(error).split()), err=True)
        click.get_current_context().exit(IO_ERROR)
    mount = findings.mount
    if as_json:
        print_json(
            {
                "path": findings.path,
                "verdict": findings.verdict,
                "exit_code": findings.exit_code,
                "mount": mount,
                "network": mount.is_network,
                "free_bytes": findings.free_bytes,
                "checks": findings.checks,
                "not_tested": findings.not_tested,
            }
        )
    else:
        print_text(f"folder       {findings.path}")
        print_text(f"file system  {mount.kind} at {mount.point} from {mount.source} ({mount.options})")
        print_text(f"free         {format_bytes(findings.free_bytes)}")
        print_text()
        print_table(
            ["tried", "passed", "found", "needed by"],
            [[c.name, "yes" if c.passed else "no", c.found, c.needed_by] for c in findings.checks],
        )
        print_text()
        for untested in findings.not_tested:
            print_text(f"not tested: {untested}")
        limit = ", as far as this machine can see" if mount.is_network else ""
        print_text(f"{findings.path}: {findings.verdict}{limit}")
    click.get_current_context().exit(findings.exit_code)
