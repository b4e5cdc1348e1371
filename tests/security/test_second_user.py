"""Another user of the host, with umask 000 on our side: reads nothing, writes nothing, and disturbs no run.

The attacker is this test's own process under another uid (no account is made). Each row of ATTACKS is one try; what is
tried under a name inside a run is also tried for each file there is. The run's result is compared with what it should be.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import store
from remote_train.transport.local import LocalChannel, LocalTransport
from tests.host.account_kit import Account, Started, until
from tests.security.test_modes import list_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or sys.platform != "linux" or not shutil.which("setpriv"),
    reason="to become another user takes root, and setpriv",
)

STRANGER = 61234
OWNER = 61235
CANARY = "canary-of-the-owner"
SCRIPT = """
import os, pathlib, time
os.umask(0)
pathlib.Path("out").mkdir()
pathlib.Path("out/ckpt.pt").write_bytes(b"weights")
print("begun", flush=True)
until = time.monotonic() + 60
while not pathlib.Path("go").exists() and time.monotonic() < until: time.sleep(0.02)
print("done with", len(os.environ["TOKEN_OF_MINE"]), flush=True)
"""


class Target:
    """What an attack may be done to: a running attempt of another user's."""

    def __init__(self, root: Path, started: Started) -> None:
        self.root, self.folder = root, started.folder
        record = started.record
        self.pids = [record["pid"], record["child"]]
        self.token = record["token"]
        self.bait = Path("/tmp") / f"bait-{os.getpid()}"


def any_pid(act: Callable[[int], object]) -> Callable[[Target], object]:
    return lambda target: [act(pid) for pid in target.pids]


def on_folder(act: Callable[[Path], object]) -> Callable[[Target], object]:
    return lambda target: act(target.folder)


def on_root(act: Callable[[Path], object]) -> Callable[[Target], object]:
    return lambda target: act(target.root)


def ptrace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "ptrace")


def read_memory(pid: int) -> bytes:
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(16)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 16)
    if libc.process_vm_readv(pid, vector, 1, vector, 1, 0) == -1:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
    return buffer.raw


def steal_descriptor(pid: int) -> None:
    handle = os.pidfd_open(pid)
    number = ctypes.CDLL(None, use_errno=True).syscall(438, handle, 1, 0)
    if number == -1:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")


INSIDE: dict[str, Callable[[Path], object]] = {
    "read attempt.json": lambda f: (f / "attempt.json").read_text(),
    "read claim.json": lambda f: (f / "claim.json").read_text(),
    "read the output": lambda f: (f / "ranks" / "0.log").read_bytes(),
    "read the clock": lambda f: (f / "clock.jsonl").read_bytes(),
    "read the telemetry": lambda f: (f / "telemetry.jsonl").read_bytes(),
    "read supervisor.log": lambda f: (f / "supervisor.log").read_bytes(),
    "read the script": lambda f: (f / "code" / "train.py").read_bytes(),
    "read a checkpoint that the training left open": lambda f: (f / "code" / "out" / "ckpt.pt").read_bytes(),
    "look at a file": lambda f: os.stat(f / "attempt.json"),
    "list the attempt": lambda f: os.listdir(f),
    "list the snapshot": lambda f: os.listdir(f / "code"),
    "append to the output": lambda f: (f / "ranks" / "0.log").open("ab"),
    "cut the output": lambda f: os.truncate(f / "ranks" / "0.log", 0),
    "order a stop": lambda f: (f / "stop").write_text("{}"),
    "make the end": lambda f: (f / "exit.json").write_text("{}"),
    "make the end a link": lambda f: (f / "exit.json").symlink_to("/etc/passwd"),
    "make the end a FIFO": lambda f: os.mkfifo(f / "exit.json"),
    "put a report": lambda f: (f / "report.jsonl").write_text("{}"),
    "make the report a folder": lambda f: (f / "report.jsonl").mkdir(),
    "let the training go": lambda f: (f / "code" / "go").touch(),
    "lock the attempt": lambda f: os.open(f / "lock", os.O_RDWR),
    "remove the lock": lambda f: (f / "lock").unlink(),
    "remove the script": lambda f: (f / "code" / "train.py").unlink(),
    "rename the attempt": lambda f: f.rename(f.with_name("2")),
    "change its mode": lambda f: f.chmod(0o777),
    "change its owner": lambda f: os.chown(f, STRANGER, STRANGER),
    "change its time": lambda f: os.utime(f / "attempt.json", (0, 0)),
    "link to a file": lambda f: os.link(f / "attempt.json", f"/tmp/link-{os.getpid()}"),
    "watch the folder": lambda f: watch(f),
    "enter the folder": lambda f: os.chdir(f),
}
AT_THE_ROOT: dict[str, Callable[[Path], object]] = {
    "list the state folder": lambda r: os.listdir(r),
    "list the runs": lambda r: os.listdir(r / "runs"),
    "list the contents": lambda r: os.listdir(r / "blobs"),
    "plant an agent": lambda r: (r / "agents" / ("0" * 64)).mkdir(),
    "alter the agent": lambda r: next((r / "agents").iterdir()),
    "plant a run": lambda r: (r / "runs" / "mine").mkdir(),
    "plant contents": lambda r: (r / "blobs" / "incoming" / ("0" * 64)).write_text(""),
    "hold off all starts": lambda r: os.open(r / "gc.lock", os.O_RDONLY),
    "keep others from tidying": lambda r: os.open(r / "tidy.lock", os.O_RDWR | os.O_CREAT),
    "plant a peak": lambda r: (r / "peaks" / "x.json").write_text("{}"),
    "swap the state folder": lambda r: r.rename(r.with_name("other")),
    "remove the state folder": lambda r: r.rmdir(),
    "put a link in its place": lambda r: os.replace(make_link(), r),
    "fill it": lambda r: (r / "big").write_bytes(bytes(1 << 20)),
}
TO_PROCESSES: dict[str, Callable[[int], object]] = {
    "read the environment": lambda p: Path(f"/proc/{p}/environ").read_bytes(),
    "read the memory": lambda p: open(f"/proc/{p}/mem", "rb"),
    "read the memory by a call": read_memory,
    "see what is mapped": lambda p: Path(f"/proc/{p}/maps").read_bytes() or 1 / 0,
    "list the descriptors": lambda p: os.listdir(f"/proc/{p}/fd"),
    "enter its folder": lambda p: os.chdir(f"/proc/{p}/cwd"),
    "enter its root": lambda p: os.listdir(f"/proc/{p}/root"),
    "open its output": lambda p: open(f"/proc/{p}/fd/1", "ab"),
    "trace it": ptrace,
    "take a descriptor": steal_descriptor,
    "end it": lambda p: os.kill(p, signal.SIGTERM),
    "kill it": lambda p: os.kill(p, signal.SIGKILL),
    "ask for a stop": lambda p: os.kill(p, signal.SIGUSR1),
    "halt it": lambda p: os.kill(p, signal.SIGSTOP),
    "kill its group": lambda p: os.killpg(os.getpgid(p), signal.SIGKILL),
    "send by pidfd": lambda p: signal.pidfd_send_signal(os.pidfd_open(p), signal.SIGKILL),
    "raise its priority": lambda p: os.setpriority(os.PRIO_PROCESS, p, 19),
    "limit it": lambda p: resource.prlimit(p, resource.RLIMIT_NOFILE, (3, 3)),
    "bind it to a CPU": lambda p: os.sched_setaffinity(p, {0}),
    "have it killed first": lambda p: Path(f"/proc/{p}/oom_score_adj").write_text("1000"),
}
ATTACKS: dict[str, Callable[[Target], object]] = {
    **{name: on_folder(act) for name, act in INSIDE.items()},
    **{name: on_root(act) for name, act in AT_THE_ROOT.items()},
    **{name: any_pid(act) for name, act in TO_PROCESSES.items()},
}


def watch(folder: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.inotify_add_watch(libc.inotify_init(), bytes(folder), 0xFFF) == -1:
        raise OSError(ctypes.get_errno(), "inotify")


def make_link() -> Path:
    link = Path("/tmp") / f"planted-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc")
    return link


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def as_stranger(work: Callable[[], object]) -> str:
    """Do something as another user, in a process of its own; return what came of it."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            become(STRANGER)
            word = repr(work())
        except BaseException as error:
            word = f"refused {type(error).__name__} {getattr(error, 'errno', '')}"
        os.write(write_fd, word.encode()[:4000])
        os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as answer:
        word = answer.read().decode()
    os.waitpid(child, 0)
    return word


class Owner:
    """The other side: agents and supervisors that run as a user of their own, under umask 000."""

    def __init__(self, tmp_path: Path) -> None:
        for above in (tmp_path, *tmp_path.parents):
            if above.stat().st_uid == 0 and above != Path("/"):
                above.chmod(
                    above.stat().st_mode | 0o055
                )  # pytest closes its folders: open them for the sake of the test
        self.home = tmp_path / "home"

    def give(self) -> None:
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, OWNER, OWNER, follow_symlinks=False)
        self.home.chmod(0o755)


class OwnersTransport(LocalTransport):
    """The host's side as user OWNER, whose login has umask 000."""

    def open(self, command: str) -> LocalChannel:
        words = ["setpriv", f"--reuid={OWNER}", f"--regid={OWNER}", "--clear-groups"]
        return super().open(f"umask 000; exec {' '.join(words)} /bin/sh -c {shlex.quote(command)}")


@pytest.fixture
def target(account: Account, tmp_path: Path) -> Iterator[Target]:
    """A run of user OWNER's that has begun, and whose every file was made under umask 000."""
    Owner(tmp_path).give()
    session = account.connect(transport=OwnersTransport())
    package = account.ship(session, {"train.py": SCRIPT})
    # Any Python that this user may execute: that of our environment may lie in a folder of root's.
    changes: dict[str, Any] = {"python": "python3", "secrets": {"TOKEN_OF_MINE": CANARY}}
    session.request("start", **account.message(package, "train.py", **changes))
    session.close()
    started = Started(account, "run")
    started.says(b"begun")
    until(lambda: started.record.get("child"), "its child")
    yield Target(account.root, started)
    (started.folder / "code" / "go").touch()
    end = started.end()
    assert end["code"] == 0
    assert end["stopped"] is False
    assert started.output() == f"begun\ndone with {len(CANARY)}\n".encode()
    assert os.stat(started.folder / "exit.json").st_uid == OWNER


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 40


def test_another_user_can_neither_read_nor_disturb_anything(target: Target) -> None:
    assert os.stat(f"/proc/{target.pids[0]}").st_uid == OWNER
    assert list_open(target.root, apart=("code", "__pycache__")) == []
    came = {name: as_stranger(partial(act, target)) for name, act in ATTACKS.items()}
    assert {name: word for name, word in came.items() if not word.startswith("refused")} == {}
    errors = ("PermissionError", "OSError 1", "OSError 13")
    assert {n: w for n, w in came.items() if not w.startswith(tuple(f"refused {e}" for e in errors))} == {}


def test_what_everybody_can_see_tells_no_secret(target: Target) -> None:
    """A command line, a process' name and its state are public on every Linux."""
    for pid in target.pids:
        command = as_stranger(Path(f"/proc/{pid}/cmdline").read_bytes)
        assert "train.py" in command or "-I" in command
        assert CANARY not in command
        assert target.token not in command


def test_nothing_of_ours_listens(target: Target) -> None:
    own = set()
    for pid in target.pids:
        for number in os.listdir(f"/proc/{pid}/fd"):
            place = os.readlink(f"/proc/{pid}/fd/{number}")
            if place.startswith("socket:["):
                own.add(place[8:-1])
    assert own == set()


def flip(place: Path, bait: Path, seconds: float) -> None:
    """Put a folder, a link and a FIFO at a place in turn, as fast as it goes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        makers: tuple[Callable[[], object], ...] = (
            place.mkdir,
            lambda: place.symlink_to(bait),
            lambda: os.mkfifo(place),
        )
        for make in makers:
            try:
                make()
                os.chmod(place, 0o777)
            except OSError:
                pass
            try:
                place.unlink() if place.is_symlink() or not place.is_dir() else place.rmdir()
            except OSError:
                pass


def open_as_owner(root: Path) -> int:
    """Open a state folder as user OWNER: 0 it is ours, 1 refused, 3 it is somebody else's."""
    trial = os.fork()
    if trial == 0:
        become(OWNER)
        os.umask(0)
        try:
            store.open_root(str(root))
            os._exit(0 if os.lstat(root).st_uid == OWNER else 3)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(trial, 0)[1])


@pytest.mark.slow
def test_a_race_of_links_in_a_shared_folder_leads_nowhere(tmp_path: Path) -> None:
    """For 15 s a stranger flips what stands where our state folder is to be made, in a folder like /tmp."""
    owner = Owner(tmp_path)
    owner.home.mkdir()
    shared, bait = tmp_path / "shared", tmp_path / "bait"
    for folder, mode in ((shared, 0o1777), (bait, 0o777)):
        folder.mkdir()
        folder.chmod(mode)
    owner.give()
    child = os.fork()
    if child == 0:
        become(STRANGER)
        flip(shared / "remote-train", bait, 15.0)
        os._exit(0)
    codes = []
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        codes.append(open_as_owner(shared / "remote-train"))
        if codes[-1] == 0:
            shutil.rmtree(shared / "remote-train")
    print(f"refused {codes.count(1)} times, made {codes.count(0)} times")
    assert set(codes) <= {0, 1}, "a state folder of another user was taken"
    assert 1 in codes
    assert list(bait.iterdir()) == []
