"""What a supervisor gives to a training, and what it records of its end."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import layout
from tests.host.account_kit import Started, agents_of, until

if TYPE_CHECKING:
    from tests.host.account_kit import Account

ODD = b"no newline \x00\xff\x1b[31m at the end"

WRITER = """
import os, sys
for number in range(200):
    os.write(1, b"out %d\\n" % number)
    os.write(2, b"err %d\\n" % number)
os.write(1, bytes.fromhex(sys.argv[1]))
"""

LOOKER = """
import json, os, sys
held = {fd: "/proc/self/fd/%d" % fd for fd in range(3, 1000) if os.path.lexists("/proc/self/fd/%d" % fd)}
facts = {
    "fds": sorted(os.readlink(path) for path in held.values() if os.path.lexists(path)),
    "stdin": os.readlink("/proc/self/fd/0"),
    "out": [os.readlink("/proc/self/fd/%d" % fd) for fd in (1, 2)],
    "umask": os.umask(0o22),
    "env": dict(os.environ),
    "cwd": os.getcwd(),
    "session": os.getsid(0) == os.getpid(),
    "terminal": os.isatty(1),
    "read": sys.stdin.read(),
    "argv": sys.argv,
}
ignored = [line for line in open("/proc/self/status") if line.startswith(("SigIgn", "SigBlk"))]
facts["ignored"] = [int(line.split()[1], 16) for line in ignored]
print(json.dumps(facts), flush=True)
"""

LINGERING = """
import os, subprocess, sys
for number in range(3):
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)"], {})
    os._exit(0)
os.wait()
print("left", flush=True)
"""


@pytest.mark.parametrize("code", [0, 7])
def test_the_exit_code_is_recorded(account: Account, code: int) -> None:
    started = account.start(f"import sys; print('hello'); sys.exit({code})")
    ended = started.end()
    assert (ended["code"], ended["signal"], ended["stopped"]) == (code, None, False)
    failure = None if code == 0 else {"rank": 0, "code": 7, "signal": None}
    assert ended["first_failure"] == failure
    assert ended["outputs"] == {"0": 6}
    assert ended["survivors"] == []
    assert started.state()["state"] == "ended"
    until(lambda: not started.supervisor_lives(), "the supervisor's own end")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_death_by_signal_is_recorded(account: Account, number: signal.Signals) -> None:
    started = account.start(f"import os; os.kill(os.getpid(), {int(number)})")
    ended = started.end()
    assert (ended["code"], ended["signal"]) == (None, number)
    assert ended["first_failure"] == {"rank": 0, "code": None, "signal": number}
    assert not ended["stopped"]


def test_the_output_is_exact_and_in_the_order_written(account: Account) -> None:
    started = account.start(WRITER, ODD.hex())
    ended = started.end()
    lines = b"".join(b"out %d\nerr %d\n" % (number, number) for number in range(200))
    assert started.output() == lines + ODD
    assert ended["outputs"] == {"0": len(lines + ODD)}


def test_the_clock_covers_the_output(account: Account) -> None:
    started = account.start("print('x' * 1000)\nimport sys\nprint('y' * 500)")
    ended = started.end()
    entries = [json.loads(line) for line in (started.folder / layout.CLOCK).read_bytes().splitlines()]
    assert entries[-1]["sizes"] == ended["outputs"]
    monotonic = [entry["mono"] for entry in entries]
    assert monotonic == sorted(monotonic)
    assert monotonic[0] >= 0
    assert all(isinstance(entry["wall"], float) for entry in entries)
    sizes = [entry["sizes"]["0"] for entry in entries if "0" in entry["sizes"]]
    assert sizes == sorted(sizes)


def look(started: Started) -> dict[str, Any]:
    started.end()
    facts: dict[str, Any] = json.loads(started.output())
    return facts


def test_the_training_inherits_nothing_it_should_not(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4 5 6.7.8.9 22")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere/agent")
    monkeypatch.setenv("FROM_THE_LOGIN", "yes")
    env, default = (
        {"PLANNED": "1", "BOTH": "plan"},
        {"BOTH": "default", "ONLY": "default", "FROM_THE_LOGIN": "no"},
    )
    started = account.start(LOOKER, "--a b", env=env, default_env=default, secrets={"TOKEN": "hush-hush"})
    facts = look(started)
    assert facts["fds"] == []
    assert facts["stdin"] == "/dev/null"
    assert facts["read"] == ""
    log = str(started.folder / "ranks" / "0.log")
    assert facts["out"] == [log, log]
    assert facts["cwd"] == str(started.folder / "code")
    assert facts["session"]
    assert not facts["terminal"]
    assert facts["argv"] == ["train.py", "--a b"]
    seen = facts["env"]
    assert [name for name in seen if name.startswith("SSH_")] == []
    assert (seen["PLANNED"], seen["BOTH"], seen["ONLY"], seen["FROM_THE_LOGIN"]) == (
        "1",
        "plan",
        "default",
        "yes",
    )
    assert seen["TOKEN"] == "hush-hush"
    # Python itself ignores SIGPIPE and SIGXFSZ; nothing else may come from us, and nothing may be blocked.
    blocked, ignored = facts["ignored"] if facts["ignored"][1] else (facts["ignored"][0], 0)
    own = {1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ)}
    assert blocked | ignored == sum(own)


def test_a_secret_is_in_no_file(account: Account) -> None:
    started = account.start("print('x')", secrets={"TOKEN": "hush-hush"})
    started.end()
    found = [path for path in account.root.rglob("*") if path.is_file() and b"hush-hush" in path.read_bytes()]
    assert found == []


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("contact", ["first", "second"])
def test_the_umask_of_the_login_is_kept(account: Account, umask: int, contact: str) -> None:
    """On the first contact the agent is installed by the same process, under a umask of our own."""
    if contact == "second":
        account.connect().close()
    before = os.umask(umask)
    try:
        started = account.start(LOOKER)
    finally:
        os.umask(before)
    assert look(started)["umask"] == umask


def test_our_own_files_are_closed_to_others(account: Account) -> None:
    before = os.umask(0)
    try:
        started = account.start("print('x')")
    finally:
        os.umask(before)
    started.end()
    code = started.folder / "code"
    open_to_others = [
        path
        for path in account.root.rglob("*")
        if not path.is_symlink() and code not in path.parents and path.stat().st_mode & 0o077
    ]
    assert open_to_others == [] or all((account.root.stat().st_mode & 0o077) == 0 for _ in open_to_others)
    assert account.root.stat().st_mode & 0o077 == 0


def test_what_is_left_behind_is_swept_and_bystanders_are_not(account: Account) -> None:
    command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, start_new_session=True) as bystander:
        try:
            started = account.start(LINGERING)
            ended = started.end()
            assert started.output() == b"left\n"
            assert (ended["code"], ended["survivors"]) == (0, [])
            assert started.members() == []
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_the_connection_ends_although_the_training_goes_on(account: Account) -> None:
    """Sshd waits for everybody who holds its pipes: the supervisor and the training must hold none of them."""
    started = account.start("import time; print('on', flush=True); time.sleep(600)")
    started.says(b"on")
    until(lambda: not agents_of(account.home), "the agent's end")
    assert started.state()["state"] == "running"
    assert started.state()["supervised"]
    pid = started.record["pid"]
    links = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    assert not [link for link in links if link.startswith("socket:")]


def test_a_persist_folder_survives_and_data_is_linked(account: Account) -> None:
    data = account.home / "big-data"
    data.mkdir()
    (data / "a.bin").write_bytes(b"abc")
    script = "open('.cache/n', 'a').write('x'); print(open('.cache/n').read(), open('data/big/a.bin').read())"
    links = {"data/big": "~/big-data"}
    for run, expected in (("one", b"x abc\n"), ("two", b"xx abc\n")):
        started = account.start(script, run=run, links=links, persist=(".cache",))
        assert started.end()["code"] == 0
        assert started.output() == expected


def test_the_end_is_told_after_the_output_is_complete(account: Account) -> None:
    """Two megabytes and a death: exit.json states exactly what is in the file."""
    script = "import os\nfor n in range(20000): os.write(1, b'%05d' % n + b'x' * 94 + b'\\n')\nos.abort()"
    started = account.start(script)
    ended = started.end()
    output = started.output()
    assert ended["signal"] == signal.SIGABRT
    assert ended["outputs"]["0"] == len(output)
    expected = hashlib.sha256(b"".join(b"%05d" % n + b"x" * 94 + b"\n" for n in range(20000)))
    assert hashlib.sha256(output[: 20000 * 100]).hexdigest() == expected.hexdigest()
