"""Functions of workers and their parents, for tests/pipeline/runtime/test_workers.py.

As a script, a parent that starts a process which does nothing, prints its number, and waits to be killed.
"""

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from logitstore.pipeline.runtime.workers import Worker, send_array

WHERE, EXPECTED = "transfer_set", "2 workers"


def idle(*_: object) -> None:
    """Do nothing for long."""
    time.sleep(120)


def answers(connection: Connection, rows: int) -> None:
    """Send a header and an array, then end."""
    connection.send(("rows", rows))
    send_array(connection, np.arange(rows, dtype=np.int64))


def begins(connection: Connection) -> None:
    """Send half of an array."""
    send_array(connection, np.zeros(5, np.int64))
    time.sleep(120)


if __name__ == "__main__":
    if sys.argv[1] == "ours":
        process = Worker(WHERE, EXPECTED, idle).process
    else:  # the control: a process of the standard library, which nobody ends
        process = multiprocessing.get_context("spawn").Process(target=idle, daemon=True)  # type: ignore[assignment]
        process.start()
    print(process.pid, flush=True)
    time.sleep(120)
