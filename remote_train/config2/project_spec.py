"""What the rest of the program sees of a project: its place and its file, as plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class ProjectPlace:
    """The project's folder, and where in it the user stands."""

    root: Path
    """Absolute, symbolic links resolved."""
    relative: PurePosixPath
    """The run's working directory below root; `.` for root itself."""


@dataclass(frozen=True)
class ProjectSpec:
    """The project file; with its defaults where there is none. All paths are relative to the project's folder."""

    project: str
    script: str | None = None
    module: str | None = None
    args: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    """Patterns of files to pull."""
    resume_args: tuple[str, ...] = ()
    device_args: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By "cpu" and "cuda"; only what the file gives."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    persist: tuple[str, ...] = ()
    max_mb: int = 200
    env_forward: tuple[str, ...] = ()
    env_secret: tuple[str, ...] = ()
    source: Path | None = None
    """The file it was read from; None when there is none."""
