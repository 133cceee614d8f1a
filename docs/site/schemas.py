"""JSON Schemas of the command line, made from the tables of docs/reference/json.md.

Run `python docs/site/schemas.py` after a change of a table. A test compares the files with the tables, and real output with
the files.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

REFERENCE: Final = Path(__file__).resolve().parents[1] / "reference"
FOLDER: Final = REFERENCE / "schemas"
_PLAIN: Final = ("string", "integer", "number", "boolean", "object", "null")
_OF: Final = "The keys of a `"
Record = dict[str, Any]


def schema_of(text: str) -> Record:
    """Return the schema of a type in the words of the tables.

    >>> schema_of("list of string or null")
    {'anyOf': [{'type': 'array', 'items': {'type': 'string'}}, {'type': 'null'}]}
    >>> schema_of('"a" or `capture`'), schema_of("map of nullable number")["additionalProperties"]
    ({'anyOf': [{'const': 'a'}, {'$ref': '#/$defs/capture'}]}, {'type': ['number', 'null']})
    """
    first, *others = text.split(" or ")
    if others:
        return {"anyOf": [schema_of(one) for one in (first, *others)]}
    if text.startswith("list of "):
        return {"type": "array", "items": schema_of(text.removeprefix("list of "))}
    if text.startswith("map of "):
        return {"type": "object", "additionalProperties": schema_of(text.removeprefix("map of "))}
    if text.startswith("nullable "):
        return {"type": [schema_of(text.removeprefix("nullable "))["type"], "null"]}
    if text in _PLAIN:
        return {"type": text}
    if constant := re.fullmatch(r'"(.+)"', text):
        return {"const": constant[1]}
    if record := re.fullmatch(r"`(\w+)`", text):
        return {"$ref": f"#/$defs/{record[1]}"}
    raise ValueError(f"docs/reference/json.md: expected a type, found {text!r}; correct the table")


def _sections(page: str) -> Iterator[tuple[str, str]]:
    """Yield each heading of levels 2 and 3, without backticks, with the text below it."""
    pieces = re.split(r"^###? (.+)$", page, flags=re.MULTILINE)
    for heading, body in zip(pieces[1::2], pieces[2::2], strict=True):
        yield heading.replace("`", ""), body


def _record(body: str, records: dict[str, Record]) -> Record:
    """Return the schema of a table: every key is required, and no other is allowed."""
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", body, re.MULTILINE)
    properties = {key: schema_of(kind) | {"description": meaning} for key, kind, meaning in rows}
    if base := re.search(rf"^{_OF}(\w+)`", body, re.MULTILINE):
        properties = records[base[1]]["properties"] | properties
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _named(value: Any) -> set[str]:
    """Return the records that a schema names."""
    return set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(value)))


def schemas(page: str) -> dict[str, Record]:
    """Return the schema of each file that the page names."""
    outputs: dict[str, tuple[str, str]] = {}
    bodies: dict[str, str] = {}
    for heading, body in _sections(page):
        if file := re.search(r"^Schema: \[([\w-]+\.json)\]\(schemas/\1\)$", body, re.MULTILINE):
            outputs[file[1]] = heading, body
        elif re.search(r"^\| `", body, re.MULTILINE):
            bodies[heading] = body
    records: dict[str, Record] = {}
    for name, body in bodies.items():
        records[name] = _record(body, records)
    made = {}
    for file_name, (heading, body) in outputs.items():
        record = _record(body, records)
        # The records that it names, and those that they name.
        needed: set[str] = set()
        while more := _named([record, *(records[one] for one in needed)]) - needed:
            needed |= more
        made[file_name] = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"logitstore {heading} --json",
            **record,
            **({"$defs": {name: records[name] for name in sorted(needed)}} if needed else {}),
        }
    return made


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    made = schemas((REFERENCE / "json.md").read_text(encoding="utf-8"))
    for old in FOLDER.glob("*.json"):
        if old.name not in made:
            old.unlink()
    for name, schema in made.items():
        text = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
