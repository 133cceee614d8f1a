"""What did a task on a dask cluster come to, and what if its scheduler is gone?"""

from concurrent.futures import CancelledError
from typing import Any

from ..storage.errors import TransientIOError


def result_of(future: Any, task: str) -> Any:
    """The result of a `distributed.Future`, once it is there.

    task: what it is part of, for the message. Raises what the task raised, TransientIOError where the scheduler did not
    stay until it was done.
    """
    try:
        return future.result()
    except (CancelledError, OSError) as error:
        if future.status == "error":  # the task's own
            raise
        said = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise TransientIOError(
            task,
            expected="a dask scheduler that answers until the work is done",
            found=" ".join(str(said).split()),
            remedy="start it again and run the same command: what is finished is kept",
        ) from error


def cancel(client: Any, futures: list[Any]) -> None:
    """Have a cluster drop what of these tasks is not done; nothing where its scheduler is gone."""
    if client.status == "running":
        client.cancel(futures)
