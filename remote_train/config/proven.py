"""Remember what a file that was found right says, so that an unchanged one needs no schema: pydantic costs 0.1 s.

Keyed by the file's bytes, by everything else its verdict rests on, and by the schema's own source. Losing an entry
costs only that time; a damaged one is not believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from remote_train.private import make_private

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST = 64
_SCHEMA = ("hosts_schema.py", "project_schema.py", "value_rules.py", "host_spec.py", "project_spec.py")


def make_key(kind: str, parts: Iterable[str]) -> str:
    """Return the name under which a verdict is kept."""
    folder = Path(__file__).parent
    stamps = [str((folder / name).stat().st_mtime_ns) for name in _SCHEMA]
    document = json.dumps([kind, stamps, *parts])
    return hashlib.sha256(document.encode("utf-8", "surrogatepass")).hexdigest()


def recall(key: str) -> dict[str, Any] | None:
    """Return what was remembered, None when there is nothing to believe."""
    try:
        value = json.loads((_folder() / f"{key}.json").read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def remember(key: str, value: dict[str, Any]) -> None:
    """Keep what a file says; a cache that cannot be written is none."""
    folder = _folder()
    with contextlib.suppress(OSError):
        make_private(folder)
        temporary = folder / f"{key}.{os.getpid()}.tmp"
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(value))
        temporary.replace(folder / f"{key}.json")
        _drop_old(folder)


def _drop_old(folder: Path) -> None:
    entries = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in entries[:-MOST]:
        path.unlink(missing_ok=True)


def _folder() -> Path:
    return user_cache_path("remote-train") / "config"
