"""An account in a folder, a box behind a real sshd, laptops: what faults are done to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import alone, box, laptop, measured, project
from tests.e2e.machines import Box, Laptop, known_line, make_laptop
from tests.faults.chaos_proxy import ChaosProxy
from tests.host.account_kit import account

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["account", "alone", "box", "laptop", "measured", "project"]


def laptop_behind(proxy: ChaosProxy, home: Path, box: Box) -> Laptop:
    """Make a laptop that reaches the box through a proxy."""
    made = make_laptop(home, box)
    made.trust(known_line(box.sshd).replace(str(box.sshd.port), str(proxy.port)))
    made.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(port=str(proxy.port))}')
    return made


@pytest.fixture
def proxy(box: Box) -> Iterator[ChaosProxy]:
    """Run a proxy in front of the box."""
    with ChaosProxy(box.sshd.port) as running:
        yield running


@pytest.fixture
def proxied(tmp_path: Path, proxy: ChaosProxy, box: Box) -> Laptop:
    """A laptop that reaches the box through the proxy."""
    return laptop_behind(proxy, tmp_path / "laptop behind a proxy", box)
