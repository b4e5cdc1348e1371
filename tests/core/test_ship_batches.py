"""Shipping: how files are batched, and what a file that changed under way does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import upload
from remote_train.errors import PackageError, ProtocolError
from remote_train.host.manifest_format import make_package_id
from remote_train.package.packing import Package
from remote_train.ship import Shipment
from remote_train.upload import Content, make_batches
from tests.host.account_kit import make_rows, sha256

if TYPE_CHECKING:
    from tests.host.account_kit import Account

sizes = st.lists(st.integers(0, 3 << 20), max_size=30)


@given(sizes, st.integers(1, 5))
def test_every_content_travels_once_and_large_ones_alone(found: list[int], items: int) -> None:
    contents = [
        Content(sha256(b"%d" % (number % 20)), size, Path(f"{number:03}"))
        for number, size in enumerate(found)
    ]
    before = upload.BATCH_ITEMS
    upload.BATCH_ITEMS = items
    try:
        batches = list(make_batches(contents))
    finally:
        upload.BATCH_ITEMS = before
    sent = [content.sha256 for batch, _ in batches for content in batch]
    assert sorted(sent) == sorted({content.sha256 for content in contents})
    for batch, packed in batches:
        assert packed == (batch[0].size < upload.LARGE)
        assert len(batch) <= (items if packed else 1)
        assert all(content.size < upload.LARGE for content in batch) or not packed


@pytest.mark.parametrize("change", ["other", "shorter", "longer", "gone"])
def test_a_file_that_changed_since_it_was_hashed_stops_the_start(account: Account, change: str) -> None:
    session = account.connect()
    root, package = account.package({"train.py": "open('began', 'w')"})
    path = root / "train.py"
    data = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes({"other": data[::-1], "shorter": data[:-1], "longer": data + b" "}[change])
    follow = {"run": "run", "attempt": 1, "outputs": []}
    if change == "longer":  # what was hashed is still its beginning: exactly that travels
        state = Shipment(session, root, package).start({}, account.message(package.package_id), follow)
        assert state["following"]["state"] in ("starting", "running", "ended")
        return
    with pytest.raises(PackageError):
        Shipment(session, root, package).start({}, account.message(package.package_id), follow)
    session.close()
    assert account.connect().request("list")["runs"] == []


def test_a_host_may_ask_once_more_for_data_and_for_nothing_else(account: Account) -> None:
    session = account.connect()
    rows = make_rows({"train.py": b"pass"})
    shipment = Shipment(session, account.home, Package(rows, make_package_id(rows), 4, (), (), None))
    brought: list[list[str]] = []
    shipment.bring_data = lambda _session, ids: brought.append(list(ids))
    for _ in range(2):
        shipment._send_needed({"need": "data", "data": ["1" * 64]}, rows)
    assert brought == [["1" * 64]] * 2
    with pytest.raises(ProtocolError, match="asks again"):
        shipment._send_needed({"need": "data", "data": ["1" * 64]}, rows)
    shipment._send_needed({"need": "manifest"}, rows)
    with pytest.raises(ProtocolError, match="asks again"):
        shipment._send_needed({"need": "manifest"}, rows)


def test_a_host_that_asks_for_what_is_not_in_the_package_is_refused(account: Account) -> None:
    session = account.connect()
    rows = make_rows({"train.py": b"pass"})
    package = Package(rows, make_package_id(rows), 4, (), (), None)
    shipment = Shipment(session, account.home, package)
    with pytest.raises(ProtocolError, match="not in the package"):
        shipment._send_needed({"need": "blobs", "blobs": ["0" * 64]}, rows)
