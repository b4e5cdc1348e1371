"""Two hosts of which either can be cut off from the laptop, and a training on them whose pace a test sets.

with running_hosts(tmp_path, "a", "b") as hosts:
    hosts["a"].pace(0.1, hold=30)        # seconds a step; it waits where step 30 would begin
    hosts["a"].cut(); hosts["a"].heal()  # not one packet passes

Each in a network namespace of its own where there can be any, else behind a proxy that swallows everything.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.host import layout
from tests.e2e.machines import REPOSITORY, Box, Laptop, find_marked, running_box, write_project
from tests.faults.chaos_proxy import DOWN, UP, ChaosProxy
from tests.faults.network import TO_HOST, TO_LAPTOP, running_network, why_not
from tests.host.account_kit import sha256
from tests.sshd import public_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PACED = """
import os, sys, time
import train
real = train.Trainer.run_step
def run_step(self):
    while True:
        with open(os.path.expanduser("~/pace")) as file:
            pace, hold = file.read().split()
        if self.step < int(hold):
            break
        time.sleep(0.02)
    time.sleep(float(pace))
    return real(self)
train.Trainer.run_step = run_step
train.main()
"""
PLAIN = """
import json, os, sys, time
steps = int(sys.argv[sys.argv.index("--steps") + 1])
step, state = 0, 1
if "--resume" in sys.argv:
    step, state = json.load(open("out/ckpt.json"))
    print(f"resumed (step {step})", flush=True)
os.makedirs("out", exist_ok=True)
while step < steps:
    while True:
        with open(os.path.expanduser("~/pace")) as file:
            pace, hold = file.read().split()
        if step < int(hold):
            break
        time.sleep(0.02)
    time.sleep(float(pace))
    step, state = step + 1, (state * 1103515245 + 12345) % (1 << 31)
    print(f"step {step}/{steps} | loss {5 - step / 100 + state / (1 << 31):.4f} | 10.0 ms | 1,000 tok/s", flush=True)
    if step % 4 == 0:
        with open("out/.partial", "w") as file:
            json.dump([step, state], file)
        os.replace("out/.partial", "out/ckpt.json")
"""
"""As `paced.py`, without torch: its state is a number that each step makes from the one before."""
PROJECT = """
project = "gpt"
script = "{script}"
checkpoints = ["{checkpoint}"]
resume_args = ["--resume"]
"""
SMALL = ("--layers=1", "--heads=2", "--width=16", "--block-size=16", "--batch-size=2", "--device=cpu")
OFTEN = ("--log-every=1", "--checkpoint-every=4", "--eval-every=1000")
NEVER = 1_000_000


def set_pace(home: Path, seconds: float, hold: int = NEVER) -> None:
    """Set the pace of trainings with this HOME."""
    partial = home / "pace.partial"
    partial.write_text(f"{seconds} {hold}")
    partial.replace(home / "pace")


@dataclass
class Host:
    """A box that the laptop knows by a name."""

    name: str
    box: Box
    address: str
    port: int
    cut: Callable[[], object]
    heal: Callable[[], object]

    def pace(self, seconds: float, hold: int = NEVER) -> None:
        """Set the pace of its trainings."""
        set_pace(self.box.home, seconds, hold)

    def attempt(self, run: str, number: int) -> Path:
        """Return the folder of an attempt there."""
        return Path(layout.attempt_dir(str(self.box.root), run, number))

    def record(self, run: str, number: int) -> dict[str, Any]:
        """Return the host's record of an attempt."""
        record: dict[str, Any] = json.loads((self.attempt(run, number) / layout.ATTEMPT).read_text())
        return record

    def processes(self, run: str, number: int) -> list[int]:
        """Return the processes of an attempt, without its supervisor."""
        return find_marked(self.record(run, number)["cookie"])

    def log(self, run: str, number: int) -> bytes:
        """Return what an attempt has written."""
        path = Path(layout.rank_log(str(self.attempt(run, number)), 0))
        return path.read_bytes() if path.exists() else b""

    def ended(self, run: str, number: int) -> dict[str, Any]:
        """Return how an attempt ended, {} while it has not."""
        path = self.attempt(run, number) / layout.EXIT
        return json.loads(path.read_text()) if path.exists() else {}

    def made(self, run: str, number: int) -> str:
        """Return the hash of the checkpoint that a torch training has left there."""
        return sha256((self.attempt(run, number) / layout.CODE / "out" / "ckpt.pt").read_bytes())

    def crash(self, run: str, number: int) -> None:
        """Kill an attempt's supervisor and all that it started."""
        record = self.record(run, number)
        for pid in [record["pid"], *find_marked(record["cookie"])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


@dataclass
class Hosts:
    """The laptop, its project, and the hosts that it knows."""

    laptop: Laptop
    project: Path
    named: dict[str, Host] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Host:
        return self.named[name]


@contextlib.contextmanager
def running_host(folder: Path, name: str) -> Iterator[Host]:
    """Run a host that can be cut off."""
    if why_not() is None:
        with running_network(folder / name) as far:

            def cut() -> None:
                far.drop(TO_HOST)
                far.drop(TO_LAPTOP)

            yield Host(name, far.box, far.address, far.box.sshd.port, cut, far.restore)
        return
    with running_box(folder / name) as box, ChaosProxy(box.sshd.port) as proxy:
        yield Host(name, box, "127.0.0.1", proxy.port, lambda: proxy.silence(UP, DOWN), proxy.heal)


@contextlib.contextmanager
def running_hosts(folder: Path, *names: str, torch: bool = False) -> Iterator[Hosts]:
    """Run hosts, and make a laptop that tries them in this order; its project is the example, or does without torch."""
    home = folder / "laptop"
    home.mkdir(parents=True)
    files = {"train.py": (REPOSITORY / "examples" / "gpt" / "train.py").read_text(), "paced.py": PACED}
    facts = {"script": "paced.py", "checkpoint": "out/ckpt.pt"}
    if not torch:
        files, facts = {"plain.py": PLAIN}, {"script": "plain.py", "checkpoint": "out/ckpt.json"}
    files["remote-train.toml"] = PROJECT.format(**facts)
    hosts = Hosts(Laptop(home), write_project(folder / "gpt", files))
    with contextlib.ExitStack() as stack:
        for name in names:
            hosts.named[name] = stack.enter_context(running_host(folder, name))
        known = [
            f"[{host.address}]:{host.port} {public_line(host.box.sshd.host_keys[0])}"
            for host in hosts.named.values()
        ]
        hosts.laptop.trust(*known)
        tables = [
            f"[hosts.{host.name}]\n"
            + host.box.describe(address=f'["{host.address}"]', port=str(host.port), host_key="")
            for host in hosts.named.values()
        ]
        hosts.laptop.write_hosts(f"default = {json.dumps(list(names))}\n" + "".join(tables))
        yield hosts
