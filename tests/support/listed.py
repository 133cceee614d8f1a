"""A store that lists slowly, for the child process of a `Lister`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from logitstore.storage.backends.listing import serve

SLOW_SECONDS = 1.5


class Named:
    """A store in which every prefix has one name: its own; a prefix that begins with "slow" takes a while."""

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        if prefix.startswith("slow"):
            await asyncio.sleep(SLOW_SECONDS)
        yield f"of {prefix}"


def serve_named() -> None:
    """Serve it: the child."""
    store: Any = Named()
    serve(lambda url, options: store)
