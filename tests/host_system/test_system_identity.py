"""Who a process is: start times, zombies, exact signals, boot ids; both halves give the same answers."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.host import layout, system_linux, system_posix
from remote_train.host.process_table import Process, walk_down
from tests.host_system.conftest import REPOSITORY, find_python

WAIT = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(WAIT, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def end_unreaped(process: "subprocess.Popen[bytes]") -> None:
    """Kill a child and return when it is a zombie: waited for, but left there."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_process_is_itself_until_it_ends(system: Any, child: "subprocess.Popen[bytes]") -> None:
    start = system.start_time(child.pid)

    assert start is not None
    assert system.start_time(child.pid) == start
    assert system.is_alive(child.pid, start)
    assert not system.is_alive(child.pid, start + "0")
    assert not system.is_zombie(child.pid)
    end_unreaped(child)
    assert system.is_zombie(child.pid)
    assert system.start_time(child.pid) is None
    assert not system.is_alive(child.pid, start)
    child.wait()
    assert not system.is_zombie(child.pid)
    assert not system.is_alive(child.pid, start)


def test_a_signal_reaches_only_the_process_that_was_meant(
    system: Any, child: "subprocess.Popen[bytes]"
) -> None:
    start = system.start_time(child.pid)

    assert system.kill_process(child.pid, start + "0", signal.SIGKILL) is False
    assert child.poll() is None
    assert system.kill_process(child.pid, start, signal.SIGTERM) is True
    assert child.wait(30) == -signal.SIGTERM
    assert system.kill_process(child.pid, start, signal.SIGKILL) is False


def test_a_zombie_takes_no_signal(system: Any, child: "subprocess.Popen[bytes]") -> None:
    start = system.start_time(child.pid)
    end_unreaped(child)

    assert system.kill_process(child.pid, start, signal.SIGTERM) is False


def test_a_zombie_is_no_descendant(system: Any, child: "subprocess.Popen[bytes]") -> None:
    assert child.pid in system.descendants(os.getpid())
    end_unreaped(child)
    assert child.pid not in system.descendants(os.getpid())


def test_without_pidfd_the_start_time_is_still_compared(
    child: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd here")
    monkeypatch.delattr(os, "pidfd_open")  # as on Python 3.8
    start = str(getattr(system_linux.read_process(child.pid), "start", None))

    assert system_linux.kill_process(child.pid, start + "0", signal.SIGKILL) is False
    assert system_linux.kill_process(child.pid, start, signal.SIGKILL) is True
    assert child.wait(30) == -signal.SIGKILL


def test_nobody_has_a_pid_beyond_the_last(system: Any) -> None:
    assert system.start_time(2**22 + 1) is None
    assert system.descendants(2**22 + 1) == []


def test_the_root_and_the_caller_are_never_members(system: Any, child: "subprocess.Popen[bytes]") -> None:
    members = system.Family(os.getpid()).members("no such cookie")

    assert child.pid in members
    assert os.getpid() not in members


def test_a_root_that_carries_the_cookie_itself_is_no_member(system: Any) -> None:
    cookie = uuid.uuid4().hex
    environment = {**os.environ, layout.COOKIE: cookie}
    command = [sys.executable, "-S", "-c", "print(); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        found = [list(system.Family(root).members(cookie)) for root in (None, process.pid)]
        process.kill()

    assert found == [[process.pid], []]


def test_a_name_can_be_given(system: Any, half: str) -> None:
    before = Path("/proc/self/comm").read_bytes() if half == "linux" else b""
    system.set_process_name("remote-train, a long name")
    if half == "linux":
        assert Path("/proc/self/comm").read_bytes() == b"remote-train, a\n"
        Path("/proc/self/comm").write_bytes(before.strip())


def test_both_halves_agree_on_this_boot(system: Any) -> None:
    if sys.platform == "linux":
        assert system.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert system.boot_id() not in {"", "unknown"}


def test_a_test_can_reboot(system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "boot_id"
    monkeypatch.setenv("REMOTE_TRAIN_BOOT_ID_FILE", str(file))
    assert system.boot_id() == "unknown"
    file.write_text("another boot\n")
    assert system.boot_id() == "another boot"


NAMES = [b"python", b"a b", b"tricky) R 1 2 3", b"((", b")", b"pt_main_thread", b""]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("state", "threads", "zombie"), [(b"S", 1, False), (b"Z", 1, True), (b"Z", 3, False)]
)
def test_a_name_cannot_shift_the_fields(name: bytes, state: bytes, threads: int, zombie: bool) -> None:
    rest = b"71 72 73 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 %d 0 123456 1000 200" % threads
    process = system_linux.parse_stat(9, b"9 (%s) %s %s\n" % (name, state, rest))

    assert process == Process(9, 71, 72, "123456", zombie)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  7   1   7 Ss   Mon Nov 23 22:55:00 2026", Process(7, 1, 7, "Mon Nov 23 22:55:00 2026", False)),
        ("7 1 7 Z+ Mon Nov  3 22:55:00 2026    ", Process(7, 1, 7, "Mon Nov  3 22:55:00 2026", True)),
        ("ps: illegal option -- x", None),
        ("", None),
    ],
)
def test_a_line_of_ps_is_a_process_or_nothing(line: str, expected: Process | None) -> None:
    assert system_posix.parse_process(line) == expected


def test_only_the_environment_marks_a_process() -> None:
    plain = "1 0 train\n2 0 grep A=1\n3 0 env A=1 x\n4 0 gone\n5 7 train\n6 0 train\n"
    full = "1 0 train B=2 A=1 C=3\n2 0 grep A=1 HOME=/\n3 0 env A=1 x A=1\n4 0 new A=1\n5 7 train A=1\n6 0 train A=12 XA=1\n"

    assert system_posix.match_marks(plain, full, "A=1", 0) == [1, 3]


@given(st.dictionaries(st.integers(1, 30), st.integers(0, 30), max_size=30), st.sets(st.integers(1, 30)))
def test_walking_down_finds_exactly_those_with_a_root_above(parents: dict[int, int], roots: set[int]) -> None:
    table = {pid: Process(pid, parent, pid, "0", False) for pid, parent in parents.items()}

    def has_root(pid: int) -> bool:
        above: set[int] = set()
        while pid not in above:
            if pid in roots:
                return True
            above.add(pid)
            pid = parents.get(pid, 0)
        return False

    assert walk_down(table, roots) == roots | {pid for pid in parents if has_root(pid)}


SHIPPED = ("system", "system_posix", "cpu", "gpus", "facts", "fingerprint", "matmul_peak", "peaks_cache")


@pytest.mark.parametrize("version", ["3.8", "3.13"])
@pytest.mark.parametrize("forced", ["", "posix"])
def test_everything_imports_under_the_oldest_and_the_newest_python(version: str, forced: str) -> None:
    lines = ["import sys", f"sys.path.insert(0, {str(REPOSITORY)!r})"]
    lines += [f"import remote_train.host.{name}" for name in SHIPPED]
    lines += ["assert 'torch' not in sys.modules"]
    command = [find_python(version), "-I", "-S", "-W", "error", "-c", "\n".join(lines)]
    done = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "REMOTE_TRAIN_SYSTEM": forced}
    )

    assert done.stderr == b""
    assert done.returncode == 0


def test_the_linux_half_starts_no_process_and_loads_nothing_heavy() -> None:
    if sys.platform != "linux":
        pytest.skip("the Linux half needs Linux")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import remote_train.host.fingerprint as f; f.fingerprint_now('/', None);"
        "print([name for name in ('subprocess', 'ctypes', 'selectors') if name in sys.modules])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "REMOTE_TRAIN_SYSTEM"}
    command = [sys.executable, "-I", "-S", "-c", script, str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, check=True, env=environment)

    assert done.stdout == b"[]\n"
