"""The phases of a command, each with a way to get there and to know that one is there, behind a proxy of its own.

`World` is one host and one laptop; `Phase.enter` types the phase's command on a terminal and returns when the phase
is reached. What is typed reaches the host through a proxy that is, or can be, frozen at just this place.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.host import layout
from tests.e2e.machines import PYTHON, Box, Laptop, make_laptop, write_project
from tests.e2e.terminal import Terminal, open_terminal
from tests.faults.chaos_proxy import BLACKHOLE, DOWN, UP, ChaosProxy, Cut, Program
from tests.sshd import public_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UP_SCRIPT = "import time\nprint('up', flush=True)\ntime.sleep(600)\n"
STUBBORN = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + UP_SCRIPT
CHECKPOINT = "import os\nopen('ckpt.pt', 'wb').write(os.urandom(8 << 20))\n"
IN_KEY_EXCHANGE = 300  # bytes from the server: behind its banner, in the middle of its first packet
IN_PULL = 2_000_000
IN_SHIP = 1_000_000


@dataclass
class World:
    """One host, one laptop, and as many ways between them as there are phases."""

    folder: Path
    box: Box
    laptop: Laptop
    count: int = 0
    proxies: list[ChaosProxy] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path, box: Box) -> World:
        """Make a laptop that has launched once: what is remembered of the host makes later launches quick."""
        world = cls(folder, box, make_laptop(folder / "laptop", box))
        world.laptop.extra["REMOTE_TRAIN_HOSTS"] = str(world.laptop.hosts_file)
        world.laptop.ok(world.project({"train.py": "print('warm')"}), "run", "train.py")
        return world

    def project(self, files: dict[str, str | bytes]) -> Path:
        self.count += 1
        return write_project(self.folder / f"project{self.count}", files)

    def hosts(self, proxy: ChaosProxy, **keys: str) -> str:
        """Return a hosts.toml by which the host is reached through a proxy; it is the same host by its key."""
        known = self.laptop.home / ".ssh" / "known_hosts"
        line = f"[127.0.0.1]:{proxy.port} {public_line(self.box.sshd.host_keys[0])}\n"
        with known.open("a") as file:
            file.write(line)
        path = self.folder / f"hosts{proxy.port}.toml"
        path.write_text(f'default = ["box"]\n[hosts.box]\n{self.box.describe(port=str(proxy.port), **keys)}')
        path.chmod(0o600)
        return str(path)

    def name(self) -> str:
        self.count += 1
        return f"run-{self.count}"


@dataclass
class Stage:
    """A phase that has been reached."""

    world: World
    proxy: ChaosProxy
    run: str
    project: Path
    terminal: Terminal
    release: Callable[[], None] = lambda: None
    """Let the host go on, where it was held."""

    def freeze(self) -> None:
        """Let no byte pass any more, either way."""
        self.proxy.silence(UP, DOWN)

    def record(self) -> dict[str, Any]:
        import json

        path = self.project / "runs" / self.run / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}


@dataclass
class Plan:
    """What a phase needs before its command is typed."""

    args: list[str]
    project: Path
    run: str
    reached: Callable[[Stage], object]
    keys: dict[str, str] = field(default_factory=dict)
    program: Program = field(default_factory=Program)
    silent: bool = False
    """Nothing passes from the beginning."""
    release: Callable[[], None] = lambda: None


def is_broken(stage: Stage) -> bool:
    return any(line.broken for line in stage.proxy.lines)


def shows(words: str) -> Callable[[Stage], bool]:
    return lambda stage: words in stage.terminal.text


def probe(world: World) -> Plan:
    project = world.project({"train.py": UP_SCRIPT})
    args = ["run", "--no-fallback", "train.py"]
    return Plan(args, project, "", lambda stage: stage.proxy.lines, silent=True)


def login(world: World) -> Plan:
    project = world.project({"train.py": UP_SCRIPT})
    cut = Program(cuts=(Cut(DOWN, IN_KEY_EXCHANGE, BLACKHOLE),))
    return Plan(["run", "train.py"], project, "", is_broken, program=cut)


def bootstrap(world: World) -> Plan:
    """The host's Python takes its time, as behind a slow rc file."""
    world.count += 1
    mark, slow = world.folder / f"mark{world.count}", world.folder / f"python{world.count}"
    slow.write_text(f"#!/bin/sh\n: > {mark}\nexec sleep 600\n")
    slow.chmod(0o755)
    project = world.project({"train.py": UP_SCRIPT})
    keys = {"python": f'"{slow}"'}
    return Plan(["run", "train.py"], project, "", lambda _: mark.exists(), keys=keys)


def ship(world: World) -> Plan:
    name, project = world.name(), world.project({"train.py": UP_SCRIPT, "data.bin": os.urandom(8 << 20)})
    cut = Program(cuts=(Cut(UP, IN_SHIP, BLACKHOLE),))
    return Plan(["run", "--name", name, "train.py"], project, name, is_broken, program=cut)


def start(world: World) -> Plan:
    """Somebody else holds the attempt's lock, as an agent does that writes a large snapshot."""
    name, project = world.name(), world.project({"train.py": UP_SCRIPT})
    folder = Path(layout.attempt_dir(str(world.box.root), name, 1))
    folder.mkdir(parents=True)
    lock = os.open(folder / layout.LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    args = ["run", "--name", name, "train.py"]
    return Plan(
        args,
        project,
        name,
        lambda _: holders(folder / layout.LOCK),
        release=lambda: os.close(lock),
    )


def holders(path: Path) -> set[int]:
    """Return the other processes that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.readlink() == path:
                found.add(int(link.parts[2]))
    return found - {os.getpid()}


def stream(world: World) -> Plan:
    name, project = world.name(), world.project({"train.py": UP_SCRIPT})
    return Plan(["run", "--name", name, "train.py"], project, name, shows("up\n"))


def reconnecting(world: World) -> Plan:
    """The connection is gone, and new ones are refused."""
    plan = stream(world)
    up = plan.reached

    def reached(stage: Stage) -> bool:
        if up(stage) and not stage.proxy._refusing:
            stage.proxy.refuse()
            stage.proxy.break_all("rst")
        return "no word from box" in stage.terminal.text

    plan.reached = reached
    return plan


def pull(world: World) -> Plan:
    name, project = world.name(), world.project({"train.py": CHECKPOINT})
    world.laptop.ok(project, "run", "--no-pull", "--name", name, "train.py")
    cut = Program(cuts=(Cut(DOWN, IN_PULL, BLACKHOLE),))
    return Plan(["pull", name], project, name, is_broken, program=cut)


def stop(world: World) -> Plan:
    name, project = world.name(), world.project({"train.py": STUBBORN})
    world.laptop.ok(project, "run", "-d", "--name", name, "train.py")
    return Plan(["stop", "--grace", "60", name], project, name, shows("TERM now"))


def asking(*words: str) -> Callable[[World], Plan]:
    """A command that asks the host about a run, and gets no further than the key exchange."""

    def make(world: World) -> Plan:
        name, project = world.name(), world.project({"train.py": UP_SCRIPT})
        world.laptop.ok(project, "run", "-d", "--name", name, "train.py")
        cut = Program(cuts=(Cut(DOWN, IN_KEY_EXCHANGE, BLACKHOLE),))
        return Plan(list(words), project, name, is_broken, program=cut)

    return make


PHASES: dict[str, Callable[[World], Plan]] = {
    "probe": probe,
    "login": login,
    "bootstrap": bootstrap,
    "ship": ship,
    "start": start,
    "stream": stream,
    "reconnecting": reconnecting,
    "pull": pull,
    "stop": stop,
    "ps": asking("ps"),
    "show": asking("show"),
    "logs": asking("logs"),
    "attach": asking("logs", "-f"),
    "hosts check": asking("hosts", "check"),
}


@contextlib.contextmanager
def entered(world: World, phase: str) -> Iterator[Stage]:
    """Type the command of a phase, and go on when it is there."""
    plan = PHASES[phase](world)
    with ChaosProxy(world.box.sshd.port) as proxy:
        proxy.program = lambda _number: plan.program
        if plan.silent:
            proxy.silence(UP, DOWN)
        laptop = Laptop(world.laptop.home, {"REMOTE_TRAIN_HOSTS": world.hosts(proxy, **plan.keys)})
        try:
            with open_terminal(laptop, plan.project, *plan.args) as terminal:
                stage = Stage(world, proxy, plan.run, plan.project, terminal, plan.release)
                terminal.wait(lambda: plan.reached(stage), f"the phase {phase}", 60.0)
                yield stage
        finally:
            with contextlib.suppress(OSError):
                plan.release()


def await_end(terminal: Terminal, seconds: float) -> tuple[int, float]:
    """Read the terminal to its end; return the exit code and the seconds until the process was gone."""
    began = time.monotonic()
    while terminal.process.poll() is None:
        assert time.monotonic() - began < seconds, f"still there after {seconds:g} s\n{terminal.text}"
        terminal.read(0.01)
    took = time.monotonic() - began
    while terminal.read(0.05) and time.monotonic() - began < seconds + 2:
        pass
    return terminal.process.returncode, took


__all__ = ["PHASES", "PYTHON", "Stage", "World", "await_end", "entered"]
