"""Fixtures that several folders of tests use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.sshd import Sshd, running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Two noisy cores: an example that takes long is no failure.
settings.register_profile("noisy", deadline=None, print_blob=True)
settings.load_profile("noisy")


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test out of the folders of the person who runs them."""
    folders = tmp_path_factory.mktemp("xdg")
    for kind in ("CONFIG", "CACHE", "STATE", "DATA"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(folders / kind.lower()))
    monkeypatch.delenv("REMOTE_TRAIN_HOSTS", raising=False)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """Run an sshd with a fresh folder, keys and log."""
    with running_sshd(tmp_path / "sshd") as running:
        yield running
