"""The command `doctor`: whether a disk or a bucket is safe for several writers."""

from pathlib import Path

import click

from .. import options
from ..printing.encodings import echo
from ..printing.stores import format_bytes
from ..printing.text import pick, print_json, print_table, print_text


@options.subcommand(
    "doctor",
    "logitstore doctor .",
    "logitstore doctor /scratch --rounds 10000 --json",
    "logitstore doctor s3://bucket/runs",
)
@click.argument("path", type=str, metavar="PATH")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Races of two processes for a name.",
)
@options.json_option
def command(path: str, rounds: int, as_json: bool) -> None:
    """Test whether several processes may write a store in the folder PATH at once, or under a URL of a bucket.

    Two processes try the operations that writers need, in a temporary folder inside PATH. What is put in a bucket is
    deleted again.

    \b
    Exit codes: 0 safe for several writers, 1 one writer at a time or unsafe, 4 PATH is not writable.
    """
    from ...storage.errors import StorageError
    from ...storage.integrity.bucket_doctor import BucketFindings, examine_bucket
    from ...storage.integrity.doctor import IO_ERROR, Findings, examine

    findings: Findings | BucketFindings
    try:
        if "://" in path:
            findings = examine_bucket(path, rounds=rounds)
        else:
            findings = examine(Path(path), rounds=rounds)
    except StorageError as error:
        echo("logitstore: " + " ".join(str(error).split()), err=True)
        click.get_current_context().exit(IO_ERROR)
    mount, limit = findings.mount, ""
    if as_json:
        names = "path", "verdict", "exit_code", "mount", "free_bytes", "checks", "not_tested"
        print_json({**pick(findings, *names), "network": mount is None or mount.is_network})
    else:
        if isinstance(findings, BucketFindings):
            print_text(f"bucket       {findings.path}", "")
        else:
            limit = ", as far as this machine can see" if findings.mount.is_network else ""
            print_text(
                f"folder       {findings.path}",
                f"file system  {findings.mount.kind} at {findings.mount.point} from {findings.mount.source} "
                f"({findings.mount.options})",
                f"free         {format_bytes(findings.free_bytes)}",
                "",
            )
        print_table(
            ["tried", "passed", "found", "needed by"],
            [[check.name, check.passed, check.found, check.needed_by] for check in findings.checks],
        )
        print_text(
            "",
            *(f"not tested: {untested}" for untested in findings.not_tested),
            f"{findings.path}: {findings.verdict}{limit}",
        )
    click.get_current_context().exit(findings.exit_code)
