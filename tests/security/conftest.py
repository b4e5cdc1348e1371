"""What attackers and accidents are tried on: accounts, boxes behind a real sshd, laptops; and nothing hidden at first."""

from __future__ import annotations

import pytest

from remote_train import redaction
from remote_train.records import client_root
from tests.e2e.conftest import box, laptop, project
from tests.host.account_kit import account

__all__ = ["account", "box", "laptop", "project"]


@pytest.fixture(autouse=True)
def _own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_forms", ())
    client_root.cache_clear()
