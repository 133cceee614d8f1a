"""One loader in its own environment: a command that loaders.py calls.

Arguments are JSON. The command prints one line of JSON:

    python -m rival_loaders NAME write  {"source": …, "folder": …}
    python -m rival_loaders NAME check  {"source": …, "folder": …, "settings": [[way, workers], …]}
    python -m rival_loaders NAME time   {"folder": …, "settings": …, "rows": …, "seconds": …}
"""

import contextlib
import gc
import json
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import RIVALS
from .batches import check, open_source, rows_a_second


def main() -> dict[str, Any]:
    """Run the verb of the command line."""
    name, verb, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    rival = next(r for r in RIVALS if r.module == name)
    loader = import_module(f"rival_loaders.{name}")
    torch.set_num_threads(1)
    folder = Path(given["folder"])
    answer: dict[str, Any] = {"version": version(rival.distribution), "ways": list(loader.WAYS)}
    if verb == "write":
        loader.write(open_source(Path(given["source"])), folder)
        return answer
    found = []
    for way, workers in given["settings"]:
        batches = loader.WAYS[way](folder, workers)
        if verb == "check":
            found.append(check(batches, open_source(Path(given["source"])), workers))
        else:
            found.append(rows_a_second(batches, given["rows"], given["seconds"]))
        batches.close()  # ends its workers
        del batches
        gc.collect()
    return answer | {"found": found}


if __name__ == "__main__":
    # What a loader prints is not the answer.
    with contextlib.redirect_stdout(sys.stderr):
        result = main()
    print(json.dumps(result), flush=True)
