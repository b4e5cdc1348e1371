"""The nearest valid word for a mistyped one; nothing else lives here."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def find_nearest(word: str, choices: Iterable[str]) -> str | None:
    """Find the choice most like the word, whatever the case of its letters; None when nothing comes close."""
    by_folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def render_nearest(word: str, choices: Iterable[str]) -> str:
    """Render ", did you mean 'X'?" for the end of a message, or nothing."""
    nearest = find_nearest(word, choices)
    return f", did you mean '{nearest}'?" if nearest else ""
