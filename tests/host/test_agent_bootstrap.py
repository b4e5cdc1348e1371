"""The agent through the real bootstrap: installing, noise, other Pythons, hostile folders, and its own end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.bootstrap import make_bootstrap, parse_verdict
from remote_train.errors import HostUnfit, UsageError
from remote_train.host.manifest_format import make_package_id
from remote_train.session import Data, Item, open_session
from remote_train.transport.local import LocalChannel, LocalTransport
from remote_train.upload import Content, send_contents, send_manifest
from tests.host.account_kit import PATIENCE, Started, agents_of, make_rows, sha256, the_agent, until

if TYPE_CHECKING:
    from tests.host.account_kit import Account

PYENV = Path("~/.pyenv/versions").expanduser()
SLACK = 2.0


def find_python(version: str) -> str:
    for folder in sorted(PYENV.glob(version + ".*")) if PYENV.is_dir() else []:
        return str(folder / "bin" / "python")
    pytest.skip(f"no Python {version} here")


class Recording(LocalTransport):
    """The local transport, remembering what went up before anything but noise came down."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def open(self, command: str) -> LocalChannel:
        channel = super().open(command)
        send = channel.send

        def remember(data: bytes) -> None:
            self.sent.append(data)
            send(data)

        channel.send = remember  # type: ignore[method-assign]  # only remembers
        return channel


def uploads(transport: Recording) -> int:
    return sum(data == the_agent().upload() for data in transport.sent)


def test_only_the_first_contact_brings_the_agent(account: Account) -> None:
    first, second = Recording(), Recording()
    assert account.connect(transport=first).request("list")["runs"] == []
    assert account.connect(transport=second).request("list")["runs"] == []
    assert (uploads(first), uploads(second)) == (1, 0)
    assert [path.name for path in (account.root / "agents").iterdir()] == [the_agent().hash]


def test_a_process_ends_with_the_session(account: Account) -> None:
    session = account.connect()
    session.request("list")
    assert len(agents_of(account.home)) == 1
    session.close()
    until(lambda: not agents_of(account.home), "the agent's end")


@pytest.mark.parametrize("noise", [b"Welcome!\\n", b"\\0RT1 0123 READY\\n", b"\\0RT1 ", b"x" * 60000])
def test_noise_before_the_marker_is_skipped(account: Account, noise: bytes) -> None:
    class Noisy(LocalTransport):
        def open(self, command: str) -> LocalChannel:
            return super().open(f"printf '{noise.decode()}'; echo oops >&2; {command}")

    assert account.connect(transport=Noisy()).request("list")["runs"] == []
    assert account.connect(transport=Noisy()).request("list")["runs"] == []


def test_too_much_noise_is_an_unfit_host(account: Account) -> None:
    class Endless(LocalTransport):
        def open(self, command: str) -> LocalChannel:  # noqa: ARG002  (never gets that far)
            return super().open("yes noise")

    with pytest.raises(HostUnfit, match=r"the host said: [noise]+$"):  # the last word may be cut
        account.connect(transport=Endless())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo This account is currently not available.; exit 1", "not available"),
        ("echo 'sh: python3: broken' >&2; exit 127", "python3: broken"),
        ("exit 0", "nothing"),
    ],
)
def test_a_host_without_an_agent_speaks_for_itself(account: Account, command: str, words: str) -> None:
    class Closed(LocalTransport):
        def open(self, _command: str) -> LocalChannel:
            return super().open(command)

    with pytest.raises(HostUnfit, match=words):
        account.connect(transport=Closed())


def test_two_agents_install_at_once(account: Account) -> None:
    gate = threading.Barrier(4)
    answers: list[dict[str, Any]] = []

    def install() -> None:
        gate.wait()
        answers.append(account.connect().request("list"))

    threads = [threading.Thread(target=install) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer["runs"] for answer in answers] == [[]] * 4
    assert [path.name for path in (account.root / "agents").iterdir()] == [the_agent().hash]


def test_an_install_that_breaks_off_leaves_nothing_that_is_run(account: Account) -> None:
    upload = the_agent().upload()
    for count in (0, 3, 1000, len(upload) - 1):
        nonce = f"{count:016x}"
        channel = LocalTransport().open(make_bootstrap(the_agent().hash, nonce, sys.executable))
        held = b""
        while parse_verdict(held, nonce) is None:
            held += channel.receive(PATIENCE) or b""
        channel.send(upload[:count])
        channel.close()
        until(lambda: not agents_of(account.home), "the agent's end")
        assert not (account.root / "agents" / the_agent().hash).exists()
    assert account.connect().request("list")["runs"] == []
    assert [path.name for path in (account.root / "agents").iterdir()] == [the_agent().hash]


def test_a_damaged_agent_is_refused(account: Account) -> None:
    damaged = type(the_agent())("0" * 64, the_agent().source)
    with pytest.raises(HostUnfit, match="damaged"):
        open_session(LocalTransport(), damaged, sys.executable)
    assert account.connect().request("list")["runs"] == []


@pytest.mark.parametrize("place", ["", "agents", "agents/HASH"])
def test_code_in_a_folder_that_others_may_write_is_not_run(account: Account, place: str) -> None:
    account.connect().request("list")
    folder = account.root / place.replace("HASH", the_agent().hash)
    folder.chmod(0o777)
    with pytest.raises(HostUnfit, match="chmod 700"):
        account.connect()
    folder.chmod(0o700)
    assert account.connect().request("list")["runs"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_code_of_somebody_else_is_not_run(account: Account) -> None:
    account.connect().request("list")
    os.chown(account.root, 12345, 12345)
    with pytest.raises(HostUnfit, match="not ours"):
        account.connect()


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.13"])
def test_a_whole_run_with_another_python_for_the_agent(account: Account, version: str) -> None:
    python = find_python(version)
    session = account.connect(python)
    package = account.ship(session, {"train.py": "import sys; print('hello'); sys.exit(3)"})
    session.request("start", **account.message(package))
    started = Started(account, "run")
    ended = started.end()
    assert (ended["code"], ended["survivors"]) == (3, [])
    follow = {"run": "run", "attempt": 1, "wait": True}
    outputs = [{"stream": 1000, "name": "0", "offset": 2}]
    assert session.request("follow", outputs=outputs, **follow)["state"] == "ended"
    items: list[Item | None] = []
    while not items or getattr(items[-1], "kind", "") != "ended":
        items.append(until(lambda: session.next_item(1.0), "the next item"))
    assert b"".join(item.payload for item in items if isinstance(item, Data)) == b"llo\n"
    assert session.request("files", run="run", attempt=1, globs=[])["files"] == []
    with pytest.raises(Exception, match="no such file"):
        session.request(
            "get", run="run", attempt=1, path="../attempt.json", offset=0, block=1 << 20, stream=5
        )
    facts = session.request("facts", pythons=[python])
    assert facts["python"]["version"].startswith(version)


@pytest.mark.parametrize("version", ["3.8", "3.13"])
def test_data_is_taken_and_tidied_by_another_python(account: Account, tmp_path: Path, version: str) -> None:
    session = account.connect(find_python(version))
    bodies = {"large": os.urandom(9 << 20), "small": b"small"}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    rows = make_rows(bodies)
    data_id = make_package_id(rows)
    session.wait(send_manifest(session, data_id, {}, rows))
    contents = [Content(sha256(body), len(body), tmp_path / name) for name, body in bodies.items()]
    assert send_contents(session, contents, lambda _done, _total: None).files == 2
    assert session.request("data", data=data_id) == {"here": True}
    package = account.ship(session, {"train.py": "print(open('data/small').read())"})
    session.request("start", **account.message(package, data={"data": data_id}))
    assert Started(account, "run").end()["code"] == 0
    assert Started(account, "run").output() == b"small\n"
    tidied = session.request("prune", runs=[], thorough=True, data=True)
    assert [(row["id"], row["removed"]) for row in tidied["data"]] == [(data_id, True)]


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7"])
def test_a_python_that_is_too_old_is_named(account: Account, version: str) -> None:
    python = find_python(version)
    with pytest.raises(HostUnfit, match=r"its Python is .* 3\.8 is needed"):
        account.connect(python)


@pytest.mark.parametrize("python", ["a b", "x;id", "$(id)", "'", "py\n", "-", ""])
def test_no_python_of_the_config_reaches_a_shell_as_code(python: str) -> None:
    if python == "":
        assert "P=python3" in make_bootstrap("0" * 64, "0" * 16, python)
        return
    if python == "-":
        return  # harmless: no such command, the default is taken
    with pytest.raises(UsageError):
        make_bootstrap("0" * 64, "0" * 16, python)


def test_the_package_of_the_agent_is_python_38_and_stdlib_only() -> None:
    files = json.loads(the_agent().source)
    assert "remote_train/host/agent.py" in files
    python = find_python("3.8")
    program = "import ast, json, sys; [ast.parse(text) for text in json.load(sys.stdin).values()]"
    done = subprocess.run([python, "-I", "-c", program], input=the_agent().source, check=False)
    assert done.returncode == 0
