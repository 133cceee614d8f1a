"""The command `verify`: every file of a store against its seals."""

import click

from .. import options
from ..printing.progress import show_progress
from ..printing.stores import format_bytes
from ..printing.text import pick, print_json, print_text

_VERDICTS = {0: "clean", 1: "corrupt", 3: "untrusted", 4: "cannot be read", 5: "incomplete"}


@options.subcommand(
    "verify",
    "logitstore verify logitstore-demo/store.zarr",
    "logitstore verify logitstore-demo/store.zarr --deep --json",
)
@options.store_argument
@click.option("--deep", is_flag=True, help="Read every shard, and compare its sha256.")
@options.expect_option
@options.follow_links_option
@options.json_option
def command(store: str, deep: bool, expect: str | None, follow_links: bool, as_json: bool) -> None:
    """Check a STORE against its seals; no teacher is run and no file is changed.

    Without --deep, metadata are compared byte by byte, shards by presence and size. Files that no seal lists are
    listed; they are a problem if a plain reader of Zarr would take them for data. Every byte comes from the STORE itself,
    and none from the cache of remote shards.

    \b
    Exit codes: 0 clean, 1 corrupt, 3 untrusted (another store than expected, or one that no reader follows),
    4 could not be read, 5 incomplete (parts that were begun and are not sealed).
    """
    from ...storage.backends.remote import access_of, folder_at
    from ...storage.integrity.verify import verify

    folder = folder_at(store, access_of(follow_links=follow_links))
    path = folder.path
    with show_progress(quiet=options.settings().quiet) as progress:
        report = verify(folder, deep=deep, expect=expect, progress=progress)
    verdict = _VERDICTS[report.exit_code]
    if as_json:
        names = (
            "exit_code",
            "digest",
            "objects",
            "bytes",
            "problems",
            "unsealed",
            "later",
            "strays",
            "leftovers",
        )
        print_json({"path": path, "verdict": verdict, "deep": deep, **pick(report, *names)})
    else:
        compared = "compared" if deep else "compared by size"
        print_text(
            *(" ".join(str(problem).split()) for problem in report.problems),
            *(
                f"{path}: {part}: begun and not sealed; run the command again that began it"
                for part in report.unsealed
            ),
            *(f"{path}: {part}: sealed after the expected digest, not checked" for part in report.later),
            *(
                f"{path}: {part}: removed, but files of it are left; `logitstore rm` or `repair` removes them"
                for part in report.leftovers
            ),
            *(f"{path / key}: listed by no seal, and read by nothing" for key in report.strays),
            f"{path}: {verdict}; {report.objects:,} objects, {format_bytes(report.bytes)} of shards {compared}; "
            f"{report.digest or 'no digest'}",
        )
    click.get_current_context().exit(report.exit_code)
