"""What this laptop remembers of a host between commands, so that a launch needs one flight instead of three.

All of it may be lost or stale without harm: the agent checks what a remembered plan relies on and says what changed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from remote_train.records import client_root, read_json, remember_json

if TYPE_CHECKING:
    from pathlib import Path


MOST_DATA = 500
"""Data folders of one host that are remembered."""


def safe_name(name: str) -> str:
    """Return a name for a file, one to one, from any text."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:60]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def stat_cache_path(project_root: Path) -> Path:
    """Return where the hashes of a project's files are remembered."""
    return client_root() / "stat" / f"{safe_name(str(project_root))}.json"


def told_path(project_root: Path) -> Path:
    """Return where it is remembered what was said of a project's package."""
    return client_root() / "told" / f"{safe_name(str(project_root))}.json"


def consent_path(project_root: Path) -> Path:
    """Return where the user's yes to a project's wishes is remembered."""
    return client_root() / "consent" / f"{safe_name(str(project_root))}.json"


@dataclass(frozen=True)
class HostMemory:
    """Files about one host (and one state root on it)."""

    folder: Path

    def read_facts(self, pythons: list[str]) -> dict[str, Any] | None:
        """Return the facts as last seen for these candidate Pythons."""
        held = read_json(self._facts(pythons))
        return held.get("facts") if held.get("pythons") == pythons else None

    def write_facts(self, pythons: list[str], facts: dict[str, Any]) -> None:
        """Remember facts."""
        remember_json(self._facts(pythons), {"pythons": pythons, "facts": facts})

    def read_base(self, project_root: Path) -> dict[str, Any]:
        """Return `package` and `rows` of what this project last sent there; {} when nothing is known."""
        return read_json(self._base(project_root))

    def write_base(self, project_root: Path, package: str, rows: list[Any]) -> None:
        """Remember what was sent."""
        remember_json(self._base(project_root), {"package": package, "rows": rows})

    def read_data(self) -> list[str]:
        """Return the ids of data folders that the host was last known to hold."""
        held = read_json(self.folder / "data.json").get("held")
        return [str(data_id) for data_id in held] if isinstance(held, list) else []

    def note_data(self, data_id: str) -> None:
        """Remember that the host holds a data folder."""
        others = [held for held in self.read_data() if held != data_id]
        remember_json(self.folder / "data.json", {"held": [*others, data_id][-MOST_DATA:]})

    def _facts(self, pythons: list[str]) -> Path:
        """Return where facts are kept: those of what uv builds apart for each recipe, for projects take turns on a host."""
        recipe = pythons[0].removeprefix("uv:")[:16] if pythons and pythons[0].startswith("uv:") else ""
        return self.folder / (f"facts-{recipe}.json" if recipe else "facts.json")

    def _base(self, project_root: Path) -> Path:
        return self.folder / f"base-{safe_name(str(project_root))}.json"


def host_memory(name: str, state_dir: str | None) -> HostMemory:
    """Return the memory of a host."""
    return HostMemory(client_root() / "hosts" / safe_name(f"{name}:{state_dir or ''}"))
