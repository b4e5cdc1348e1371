"""Where a symbolic link may point so that it means the same on the host: inside the project, relative."""

from __future__ import annotations

import os


def read_link_target(root: str, path: str) -> str | None:
    """Return the target of the link `path` below `root` (a real path), relative to the link's folder.

    None when it leaves the project. `..` stands only at the start of what is returned: the host accepts nothing
    else, because `..` after a name could climb out of what that name points to.
    """
    target = os.readlink(f"{root}/{path}")  # noqa: PTH115 - a Path would tidy the target
    if not target.startswith("/") and not _climbs_late(target):
        plain = os.path.normpath(target)
        climbs = plain.split("/").count("..")
        return plain if climbs <= path.count("/") else None
    folder = os.path.dirname(f"{root}/{path}")  # noqa: PTH120 - pathlib would resolve or drop parts on its own
    resolved = _resolve(os.path.join(folder, target))  # noqa: PTH118 - same
    if resolved != root and not resolved.startswith(root.rstrip("/") + "/"):
        return None
    return os.path.relpath(resolved, folder)


def _climbs_late(target: str) -> bool:
    parts = [part for part in target.split("/") if part not in {"", "."}]
    late = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return ".." in parts[late:]


def _resolve(full_path: str) -> str:
    """Resolve the folders on the way and not the last name: a link to a link stays one."""
    folder, _, name = full_path.rstrip("/").rpartition("/")
    if name in {".", ".."}:
        return os.path.realpath(full_path)
    return os.path.join(os.path.realpath(folder or "/"), name)  # noqa: PTH118 - paths are strings here
