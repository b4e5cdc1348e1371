"""The agent's `weights`: the training's own Python makes them, while heartbeats and other requests go on."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.answers import check_answer
from remote_train.errors import HostUnfit, ProtocolError, PullIncomplete
from remote_train.refusals import NoSuchFile
from tests.host.account_kit import until
from tests.weights.checkpoints import Evil, read_safetensors, same, save, save_trained

if TYPE_CHECKING:
    from remote_train.session import Session
    from tests.host.account_kit import Account, Started

pytestmark = pytest.mark.torch


def finish(account: Account, **changes: Any) -> tuple[Started, Path]:
    """Return a run that is over, and its snapshot."""
    started = account.start("pass", **changes)
    assert started.end()["code"] == 0
    return started, started.folder / "code"


def ask(session: Session, path: str, dtype: str | None = None, **more: Any) -> int:
    return session.submit("weights", **{"run": "run", "attempt": 1, "path": path, "dtype": dtype, **more})


def scripts(started: Started) -> list[int]:
    """Return the processes that make weights of this run."""
    mark = b"remote_train.host.model_weights"
    home = f"HOME={started.account.home}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes() and home in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_weights_are_made_once_and_nothing_else_is_got_from_there(account: Account) -> None:
    started, code = finish(account)
    state = save_trained(code / "out" / "ckpt.pt")
    session = account.connect()
    made = session.wait(ask(session, "out/ckpt.pt"))
    assert made["source"] == (code / "out" / "ckpt.pt").stat().st_size
    here = started.folder / "weights" / made["name"]
    assert (here.stat().st_size, here.stat().st_mtime_ns) == (made["size"], made["mtime_ns"])
    assert same(read_safetensors(here)[1], state)
    assert session.wait(ask(session, "out/ckpt.pt")) == made
    for area, path in (("weights", "../attempt.json"), ("ranks", "0.log"), ("weights", "../lock")):
        facts = {"run": "run", "attempt": 1, "path": path, "area": area}
        with pytest.raises(NoSuchFile):
            session.request("get", stream=77, offset=0, block=1 << 20, **facts)


def test_what_weights_only_refuses_is_no_fault_of_the_host(account: Account, tmp_path: Path) -> None:
    _, code = finish(account)
    os.utime(save(code / "evil.pt", {"model": {}, "evil": Evil(tmp_path / "canary")}), (1, 1))
    session = account.connect()
    with pytest.raises(PullIncomplete, match=r"evil.pt: .*nsupported .*posix\.system") as raised:
        session.wait(ask(session, "evil.pt"))
    assert "bring it whole" in str(raised.value.hint)
    assert not (tmp_path / "canary").exists()
    with pytest.raises(NoSuchFile):
        session.wait(ask(session, "gone.pt"))
    with pytest.raises(ProtocolError):
        session.wait(ask(session, "evil.pt", "int3"))


def test_a_python_without_torch_is_an_unfit_host(account: Account) -> None:
    started, code = finish(account)
    save(code / "a.pt", {})
    record = (started.folder / "attempt.json").read_text()
    (started.folder / "attempt.json").write_text(
        record.replace(started.record["plan"]["python"], "/nowhere/python")
    )
    session = account.connect()
    with pytest.raises(HostUnfit, match="/nowhere/python"):
        session.wait(ask(session, "a.pt"))


def test_the_connection_lives_meanwhile_and_takes_the_work_with_it(account: Account) -> None:
    started, code = finish(account)
    save_trained(code / "ckpt.pt")
    folder = started.folder / "weights"
    folder.mkdir()
    session = account.connect()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the script waits for us, so it is under way for as long as we like
        number = ask(session, "ckpt.pt")
        (pid,) = until(lambda: scripts(started), "the script")
        assert session.request("state", run="run")["state"] == "ended"
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=" in environment
        assert b"OMP_NUM_THREADS=1" in environment, "it is not the training's environment"
        session.close()
        until(lambda: not scripts(started), "the script's end")
    assert number
    assert [path.name for path in folder.iterdir()] == ["lock"]


NAME = f"{'a' * 20}-{'0' * 20}.safetensors"
GOOD = {"name": NAME, "size": 1, "mtime_ns": 1, "source": 1}


@pytest.mark.parametrize(
    "change",
    [
        *({"name": name} for name in ("../../x", "/etc/passwd", "", 7, None, NAME + "\n", "lock", "\x1b[2J")),
        *({"size": size} for size in (-1, True, 2**63, "1", None)),
        *({"mtime_ns": None}, {"source": -1}),
    ],
)
def test_what_a_host_may_not_say_of_weights(change: dict[str, Any]) -> None:
    assert check_answer("box", "weights", {}, GOOD) == GOOD
    with pytest.raises(ProtocolError, match="box answered `weights`"):
        check_answer("box", "weights", {}, {**GOOD, **change})
