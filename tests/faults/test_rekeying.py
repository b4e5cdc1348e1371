"""More over one connection than its keys may be used for: the server asks for new ones in mid-transfer, again and again.

A rekey that we begin can kill a channel that is closing (paramiko #822); so only the server does: by day every 2 MB, and at night
every 256 MB of 4 GB. The library would have begun eight by itself in those (its REKEY_BYTES are 512 MB).
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

import pytest

from remote_train.blocks import BLOCK, SUM_BYTES
from remote_train.session import Data, End, Session
from remote_train.transport.paramiko_ssh import ParamikoTransport
from tests.faults.counts import PATIENT, is_nightly, note
from tests.host.account_kit import PATIENCE
from tests.sshd import running_sshd

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.account_kit import Account

pytestmark = [pytest.mark.sshd, PATIENT]

SIZE = 4 << 30 if is_nightly() else 48 << 20
LIMIT = "RekeyLimit 256M" if is_nightly() else "RekeyLimit 2M"
REKEYS = 12 if is_nightly() else 20
RUN = {"run": "run", "attempt": 1}
MAKING = """
import os, sys
size = int(sys.argv[1])
with open("big.bin", "wb") as file:
    for begin in range(0, size, 64 << 20):
        file.seek(begin)
        file.write(os.urandom(4 << 20))
    file.truncate(size)
"""


def take_file(session: Session, path: str) -> tuple[str, End]:
    """Return the SHA-256 of a file's bytes as they came, and the END."""
    stream, digest, place = session.new_stream(), hashlib.sha256(), 0
    with session.open_inbox(stream) as inbox:
        session.request("get", path=path, stream=stream, offset=0, block=BLOCK, **RUN)
        while not isinstance(item := inbox.next_item(PATIENCE), End):
            assert isinstance(item, Data), "nothing came"
            view = memoryview(item.payload)
            while view:
                inside = place % (BLOCK + SUM_BYTES)
                piece = view[: (BLOCK if inside < BLOCK else BLOCK + SUM_BYTES) - inside]
                if inside < BLOCK:
                    digest.update(piece)
                place += len(piece)
                view = view[len(piece) :]
    if SIZE % BLOCK:
        raise AssertionError("the last block is not like the others")
    return digest.hexdigest(), item


def test_a_connection_outlives_its_keys(account: Account, tmp_path: Path) -> None:
    started = account.start(MAKING, str(SIZE))
    started.end()
    with running_sshd(tmp_path / "sshd", [f"SetEnv HOME={account.home}", LIMIT]) as sshd:
        session = account.connect(transport=ParamikoTransport(sshd.target()))
        began = time.monotonic()
        came, end = take_file(session, "big.bin")
        took = time.monotonic() - began
        assert end.summary["length"] == SIZE
        assert came == end.summary["sha256"]
        content = os.urandom(8 << 20)
        stream = session.new_stream()
        items = [[hashlib.sha256(content).hexdigest(), len(content)]]
        number = session.submit("blobs", stream=stream, items=items, zlib=False)
        session.upload(stream, [content])
        assert session.wait(number)["stored"] == 1  # by its hash
        assert session.request("list")["runs"]
        session.close()
        rekeys = sshd.read_log().count("ssh_set_newkeys: rekeying out")
    note(
        "4 GB over one connection, and its rekeys" if is_nightly() else "rekeys in mid-transfer",
        rekeys,
        0,
        took,
    )
    assert rekeys >= REKEYS, "the keys were never changed"
    with (started.folder / "code" / "big.bin").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == came
