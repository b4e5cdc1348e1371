"""What an environment is made of, as both ends tell it: files by their contents, a script, whether there is a lock. Pure."""

from __future__ import annotations

import hashlib
import json
import re

from remote_train.host import layout

TYPE_CHECKING = False  # of typing, whose import would cost every launch 5 ms
if TYPE_CHECKING:
    from typing import Any, Dict, Mapping

MOST_FILES = 5000
_ONLY_HOW = (
    *(
        "UV_CACHE_DIR",
        "UV_NO_CACHE",
        "UV_LOCK_TIMEOUT",
        "UV_NO_PROGRESS",
        "UV_OFFLINE",
        "UV_KEYRING_PROVIDER",
    ),
    *("UV_CONCURRENT_BUILDS", "UV_CONCURRENT_DOWNLOADS", "UV_CONCURRENT_INSTALLS", "UV_INSECURE_HOST"),
    *("UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "UV_HTTP_RETRIES", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS"),
)
"""Variables of uv's that say how it gets something, not what."""
_LOGINS = ("_USERNAME", "_PASSWORD", "_TOKEN")
_LOGIN = re.compile(r"//[^/?#\s]*@")
"""What stands before the host of an address."""


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


def make_key(recipe: Dict[str, Any], env: Mapping[str, str], *more: str) -> str:
    """Return the name of the environment of a recipe; `more` is what else decides what comes of it.

    Of hosts.toml's `env` those variables of uv's count that may change what is built. Their values are seen nowhere: only this hash is,
    and of a login in an address not even that.
    """
    parts = [sorted(recipe["files"]), recipe.get("script"), bool(recipe.get("frozen")), *more]
    chosen = sorted([name, _LOGIN.sub("//", value)] for name, value in env.items() if _is_heeded(name))
    if chosen:
        parts.append(chosen)
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def _is_heeded(name: str) -> bool:
    return name.startswith("UV_") and name not in _ONLY_HOW and not name.endswith(_LOGINS)
