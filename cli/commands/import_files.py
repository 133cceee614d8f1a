"""The command `import`: logits in plain files as a capture of a store."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..printing.progress import show_progress
from ..printing.stores import format_bytes
from ..printing.text import nothing_to_do, pick, print_json, print_text

if TYPE_CHECKING:
    from ...pipeline.exchange.imported import Imported


@options.subcommand(
    "import",
    "logitstore import wide.npy --out mnist.zarr --teacher wide --labels labels.npy --ids ids.txt",
    "logitstore import part-0.parquet part-1.parquet --out mnist.zarr --teacher wide --dry-run",
    "logitstore import deep.pt --out mnist.zarr --teacher deep --labels labels.npy --encoding float16",
)
@click.argument("files", nargs=-1, required=True, metavar="FILES")
@click.option(
    "--out", "store", required=True, metavar="STORE", help="Store to make, or to add to: a path or URL."
)
@click.option("--teacher", required=True, metavar="NAME", help="Name of the new capture.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Class of each row: .npy, .txt, .json, .parquet, .safetensors, .pt. May be repeated.",
)
@click.option(
    "--ids",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Id of each row: .npy, .txt, .json, .parquet, .safetensors. May be repeated.",
)
@click.option(
    "--classes", "class_names", metavar="FILE", help="Name of each column: .txt, a line a class, or .json."
)
@click.option("--inputs", metavar="FILE", help="Inputs of the rows, .npy, which the store keeps.")
@click.option("--digests", metavar="FILE", help="Digests of the inputs, .npy, by logitstore.digest_rows.")
@click.option(
    "--encoding",
    metavar="NAME",
    help="float32, the default, float16, or a table as in an experiment: '{ top_k = 64 }'.",
)
@click.option("--card", metavar="TOML", help="File with a table [card] for a new store.")
@click.option(
    "--log-probabilities",
    is_flag=True,
    help="The values are log-softmax at temperature 1: logits but for a constant of each row, which no softmax sees.",
)
@click.option("--column", metavar="NAME", help="Name of the logits in a file of several arrays.")
@click.option("--view", type=int, metavar="N", help="View to take, of logits (view, row, class).")
@options.dry_run_option
@options.json_option
def command(
    files: tuple[str, ...],
    store: str,
    teacher: str,
    labels: tuple[Path, ...],
    ids: tuple[Path, ...],
    encoding: str | None,
    card: str | None,
    as_json: bool,
    **choice: Any,
) -> None:
    """Seal the logits in FILES, in their order, as the capture NAME of a STORE.

    FILES are .npy, .safetensors, .parquet, .pt or .pth. A store that is there gets one more capture, if its rows have the
    same ids, inputs or labels. All values are checked before anything is written. If the command is killed, run it again
    to resume.
    """
    from ...pipeline.exchange.import_files import import_logits
    from ...pipeline.exchange.tables_of import card_in, encoding_in

    with show_progress(quiet=options.settings().quiet) as progress:
        done = import_logits(
            files,
            store,
            teacher,
            labels=list(labels) or None,
            ids=list(ids) or None,
            encoding=None if encoding is None else encoding_in(encoding),
            card=None if card is None else card_in(Path(card)),
            progress=progress,
            **choice,
        )
    if as_json:
        names = (
            "path",
            "digest",
            "teacher",
            "dry_run",
            "made",
            "new_store",
            "rows",
            "classes",
            "dtype",
            "log_probabilities",
            "encoding",
            "labelled",
            "has_ids",
            "bytes",
            "files",
        )
        print_json(pick(done, *names))
    else:
        _print(done)


_OF_LOG_PROBABILITIES = "logits but for a constant of each row, which serve every temperature"


def _print(done: "Imported") -> None:
    place = f"teachers/{done.teacher} of {'the new store ' if done.new_store else ''}{done.path}"
    if not done.made:
        print_text(nothing_to_do(f"{place} is imported and unchanged"))
    elif done.dry_run:
        print_text(f"import {place}; all values were checked")
    for one in done.files:
        print_text(f"from    {one.file}: {one.rows:,} rows, sha256:{one.sha256}")
    rounded = ", rounded to float32" if done.dtype == "float64" else ""
    ids = "with ids" if done.has_ids else "without ids"
    print_text(
        f"logits  {done.rows:,} rows of {done.classes:,} columns in {done.dtype}{rounded}, "
        f"stored as {done.encoding['kind']}",
        *([f"values  log-probabilities: {_OF_LOG_PROBABILITIES}"] if done.log_probabilities else []),
        f"rows    {done.labelled:,} labelled, {ids}",
        f"size    {format_bytes(done.bytes)}",
        f"store   {done.path}",
        *([f"digest  {done.digest}"] if done.digest else []),
    )
