"""Fixtures that several folders of tests use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.faults.counts import is_nightly
from tests.sshd import Sshd, running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Two noisy cores: an example that takes long is no failure.
settings.register_profile("noisy", deadline=None, print_blob=True, max_examples=200 if is_nightly() else 40)
settings.load_profile("noisy")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked slow, unless the large numbers, the mark or the test itself are asked for."""
    named = any("::" in argument for argument in config.args)
    if is_nightly() or named or "slow" in str(config.option.markexpr):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


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
