"""What an environment is made of, as both ends tell it: files by their contents, a script, whether there is a lock. Pure."""

from __future__ import annotations

import hashlib
import json

from remote_train.host import layout

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict

MOST_FILES = 5000


def check_recipe(recipe: Dict[str, Any]) -> Dict[str, Any]:
    """Return a recipe (`files` of [path, SHA-256, size], `script`, `frozen`) that names nothing outside; raise ValueError."""
    files = [[str(row[0]), row[1], int(row[2])] for row in recipe["files"][: MOST_FILES + 1]]
    script = recipe.get("script")
    good = all(is_inside(row[0]) and layout.is_hash(row[1]) for row in files)
    if not good or len(files) > MOST_FILES or (script is not None and not is_inside(script)):
        raise ValueError("not a recipe of an environment")
    return {"files": files, "script": script, "frozen": bool(recipe.get("frozen"))}


def is_inside(path: object) -> bool:
    """Tell whether a path is relative and stays below where it begins."""
    if not isinstance(path, str) or not path or "\0" in path or path.startswith("/"):
        return False
    return not any(part in ("", ".", "..") for part in path.split("/"))


def make_key(recipe: Dict[str, Any], *more: str) -> str:
    """Return the name of the environment of a recipe; `more` is what else decides what comes of it."""
    parts = [sorted(recipe["files"]), recipe.get("script"), bool(recipe.get("frozen")), *more]
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()
