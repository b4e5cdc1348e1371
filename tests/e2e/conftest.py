"""One laptop, one box, one sshd between them; every test has its own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from remote_train.host import peaks_cache
from tests.e2e.machines import Box, Laptop, make_laptop, running_box, write_project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """Run a host."""
    with running_box(tmp_path / "box") as running:
        yield running


@pytest.fixture
def laptop(tmp_path: Path, box: Box) -> Iterator[Laptop]:
    """A laptop whose hosts.toml has the host as its default."""
    made = make_laptop(tmp_path / "laptop", box)
    yield made
    made.end()


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A matmul peak of 0.1 TFLOP/s for this machine, as if measured earlier: the folder it is kept in."""
    home = tmp_path_factory.mktemp("measured") / "laptop"
    laptop = make_laptop(home)
    project = write_project(home.parent / "project", {"train.py": "pass"})
    plan = laptop.ok(project, "run", "--local", "--dry-run", "--json", "train.py").event("plan")
    wanted = plan["measure"]
    key = peaks_cache.peak_key(wanted["name"], wanted["threads"], wanted["torch"], wanted["device"])
    peaks_cache.write_peak(str(home), key, {"threads": wanted["threads"], "float32": 1e11, "bfloat16": 1e11})
    return home / "peaks"


@pytest.fixture
def alone(tmp_path: Path, measured: Path) -> Iterator[Laptop]:
    """A laptop that has no hosts, and knows how fast it is itself."""
    made = make_laptop(tmp_path / "laptop")
    shutil.copytree(measured, made.root / "peaks")
    yield made
    made.end()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty folder for a project."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder
