"""Tables of TOML that `import` takes on its command line: an encoding, and the card of a new store."""

from pathlib import Path
from typing import Any

from ...storage.errors import BadDataError, ConfigError
from ..experiment.reading import parse_toml, read_text


def encoding_in(text: str) -> Any:
    """Return an encoding by its name, or by a table as in an experiment. Raises ConfigError.

    >>> encoding_in("float16"), encoding_in("{ top_k = 64 }")
    ('float16', {'top_k': 64})
    """
    if not text.lstrip().startswith("{"):
        return text.strip()
    try:
        return parse_toml(f"encoding = {text}", "encoding")["encoding"]
    except ValueError as error:
        raise ConfigError(
            "encoding",
            expected="a name, or a table such as { max_kl = 1e-3 }",
            found=repr(text)[:80],
            remedy="correct the table",
        ) from error


def card_in(path: Path) -> dict[str, Any]:
    """Return the table [card] of a file. Raises BadDataError for a file without one, ConfigError for one that is no TOML."""
    table = parse_toml(read_text(path), str(path)).get("card")
    if not isinstance(table, dict):
        raise BadDataError(
            str(path),
            expected="a table [card]",
            found="none",
            remedy="write [card], and below it name, data_set, licence, contact or description",
        )
    return table
