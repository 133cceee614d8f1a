"""The card of a store: its name, the data set and its licence, the licence, the contact and a description, in its maker's words.

It stands in the notes of `samples`: sealed with them, and not compared when a writer resumes.
"""

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from ..errors import ConfigError
from ..format.constants import MAX_CARD_CHARACTERS
from ..format.documents import beyond, invalid, shorten, table

log = logging.getLogger(__name__)
KEYS: Final = ("name", "data_set", "data_set_licence", "licence", "contact", "description")
"""Keys of a card, each optional."""
CARD: Final = "card"
"""Its key in the notes."""


def checked_card(card: Any) -> dict[str, str]:
    """Return a card in the order of `KEYS`; empty for None. Raises ConfigError for another key, and for a value that is no text.

    >>> checked_card({"licence": "CC-BY-4.0", "name": "strokes"})
    {'name': 'strokes', 'licence': 'CC-BY-4.0'}
    """
    if card is None:
        return {}
    if not isinstance(card, Mapping):
        raise ConfigError(
            CARD,
            expected=f"a dict with some of the keys {', '.join(KEYS)}",
            found=f"a {type(card).__name__}",
            remedy='pass card={"name": …, "licence": …}',
        )
    for key, value in card.items():
        if key not in KEYS:
            close = get_close_matches(str(key), KEYS, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else "put it into the description"
            raise ConfigError(
                CARD, expected=f"keys among {', '.join(KEYS)}", found=shorten(key), remedy=remedy
            )
        if found := _fault(value):
            raise ConfigError(
                f"{CARD}: {key}",
                expected=f"a text of 1 to {MAX_CARD_CHARACTERS:,} characters",
                found=found,
                remedy="shorten it, or leave the key out",
            )
    return {key: card[key] for key in KEYS if key in card}


def _fault(value: object) -> str:
    """Return what a card cannot hold, in words; nothing for a text that it can hold."""
    if not isinstance(value, str):
        return shorten(value)
    if not 0 < len(value) <= MAX_CARD_CHARACTERS:
        return f"{len(value):,} characters" if value else "an empty text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, which UTF-8 does not have"
    return ""


def card_of(notes: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the card in the notes of `samples`; empty without one. Raises ManifestInvalid, LimitExceeded.

    Other keys of the card are ignored, as those of later versions are.
    """
    card = table(notes.get(CARD, {}), where, CARD)
    for key in KEYS:
        value = card.get(key, "")
        if not isinstance(value, str):
            raise invalid(f"{where}: {CARD}.{key}", "a text", shorten(value))
        if len(value) > MAX_CARD_CHARACTERS:
            raise beyond(f"{where}: {CARD}.{key}", MAX_CARD_CHARACTERS, "characters", f"{len(value):,}")
    return {key: card[key] for key in KEYS if card.get(key)}


def warn_of_other_card(there: Mapping[str, str], given: Mapping[str, str], where: str) -> None:
    """Log a warning where a store has another card than the one that is given; none where none is given."""
    if not given or dict(there) == dict(given):
        return
    key = next(key for key in KEYS if there.get(key) != given.get(key))
    log.warning(
        "%s: the store keeps the card that it was begun with: %s is %s there, and %s here",
        where,
        key,
        shorten(there[key]) if key in there else "absent",
        shorten(given[key]) if key in given else "absent",
    )
