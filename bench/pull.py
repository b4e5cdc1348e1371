"""How checkpoints come home: a file of 1 GB beside scp and rsync, the model alone, and what a log waits meanwhile.

    python bench/pull.py [--quick] [--rtt 0,100] [--only file,slow,weights] [--transport paramiko,openssh] [--json FILE] [--dir DIR]
    (about 5 minutes, alone)

File: one incompressible file, whole processes beside each other by turns, with the peak memory of our two ends. scp and rsync leave
what they wrote to the page cache, a pull has it on the disk when it ends; `--dir /dev/shm` takes the disk out of it. `--transport` says which of
ours are measured there; over ssh itself a long line is as slow as scp, for ssh's window is 2 MB. Slow: a pull over a
line of 1 MB/s, and how late the log's lines and the answers to requests are, which wait like heartbeats do. Weights: the
checkpoint of a model trained by AdamW, whole, and `--weights` of it.

Exit code 0: every budget that was measured is kept; 1: one is not; 2: a side failed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figures, render_figures, write_json
from bench.machines import HOST, make_project, read_file_system, running_machines
from bench.reading import MB
from bench.report import Budget, has_torch, read_machine, render_budgets, render_machine, say
from bench.resident import Resident
from bench.sides import COMMAND, SideFailed, our_argv, run_rsync, start
from remote_train.blocks import BLOCK
from remote_train.bootstrap import read_agent
from remote_train.session import Data, Session, open_session
from remote_train.transport.paramiko_ssh import ParamikoTransport
from tests.faults.chaos_proxy import ChaosProxy, Program
from tests.faults.lateness import Lateness
from tests.sshd import known_line_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.machines import Machines

KINDS = ("file", "slow", "weights")
OURS = {"paramiko": "ours", "openssh": "ours, openssh"}
SIDES = (*OURS.values(), "scp", "rsync -W")
SLOW_RATE = 1e6
SEGMENT = 1400
MEMORY_MB = 150
LATE_SECONDS = 0.5
PART = "--weights: part of the bytes"
MOST_PART = 0.34
"""AdamW keeps two moments of each parameter."""
LEAST = {("ours", 0.0): 0.7, ("ours", 100.0): 8.0, ("ours, openssh", 0.0): 0.9}
"""Of scp, by side and round-trip time."""

SCRIPTS = {
    "big.py": """\
import os
import sys

os.makedirs("out")
with open("out/big.bin", "wb") as file:
    for _ in range(int(sys.argv[1])):
        file.write(os.urandom(1_000_000))
print("written", os.getcwd(), flush=True)
""",
    "late.py": """\
import os
import time

with open("big.bin", "wb") as file:
    for _ in range(200):
        file.write(os.urandom(1_000_000))
print("written", os.getcwd(), flush=True)
while True:
    print("at", time.monotonic(), flush=True)
    time.sleep(0.05)
""",
    "model.py": """\
import os
import sys

import torch

model = torch.nn.Sequential(*[torch.nn.Linear(1000, 1000) for _ in range(int(sys.argv[1]))])
optimizer = torch.optim.AdamW(model.parameters())
model(torch.randn(4, 1000)).sum().backward()
optimizer.step()
os.makedirs("out")
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": 1}, "out/ckpt.pt")
print("written", os.getcwd(), flush=True)
""",
}


class Pulls:
    """The measurements, on one pair of machines."""

    def __init__(self, machines: Machines, options: argparse.Namespace) -> None:
        self.machines = machines
        self.options = options
        self.figures = Figures()
        self.came = 0
        """Bytes that the last pull brought."""
        self.project = make_project(machines, "pulls", 10, options.seed)
        for name, text in SCRIPTS.items():
            for folder in (self.project.ours, self.project.by_hand):
                (folder / name).write_text(text)
        run_rsync(machines, self.project)

    def measure(self) -> None:
        """Take every figure that was asked for."""
        kinds: dict[str, Callable[[], None]] = {
            "file": self.measure_file,
            "slow": self.measure_slow,
            "weights": self.measure_weights,
        }
        for kind in self.options.only:
            kinds[kind]()

    def measure_file(self) -> None:
        """Bring one large file home, the sides by turns."""
        size = self.options.pull_mb
        code = self._run("big.py", str(size))
        place = f"{HOST}:{code}/out/big.bin"
        ssh = ["-F", str(self.machines.ssh_config)]
        sides = {
            OURS[name]: [COMMAND, "pull", *self._choose(name), "--match", "out/big.bin", "--to"]
            for name in self.options.transport
        }
        sides |= {
            "scp": ["scp", "-q", *ssh, place],
            "rsync -W": ["rsync", "-W", "-e", f"ssh {' '.join(ssh)}", place],
        }
        for rtt in self.options.rtt:
            self.machines.proxy.set_rtt(rtt)
            for _ in range(self.options.repeat):
                for side, argv in sides.items():
                    took = self._pull(
                        argv, "big.bin", size * MB, (side, rtt) if side in OURS.values() else None
                    )
                    self.figures.add("pull MB/s", side, rtt, size / took)
        self.machines.proxy.set_rtt(0.0)

    def _choose(self, transport: str) -> list[str]:
        """Return the options that have the same host reached by one transport."""
        hosts = self.machines.hosts_file
        chosen = hosts.with_name(f"{transport}.toml")
        table = f"[hosts.{HOST}]\n"
        chosen.write_text(hosts.read_text().replace(table, f'{table}transport = "{transport}"\n'))
        chosen.chmod(0o600)
        return ["--hosts-file", str(chosen)]

    def _run(self, script: str, *args: str) -> str:
        """Run a script on the host to its end; return the folder that it worked in."""
        timed = start(self.machines, our_argv(script=[script, *args]), self.project.ours)
        line, _ = timed.read_line()
        timed.finish()
        return line.split(maxsplit=1)[1].decode().strip()

    def _pull(self, argv: Sequence[str], name: str, least: int, ours: tuple[str, float] | None) -> float:
        """Return the seconds of a process that fills a new folder, and delete that again; note the memory of `ours`."""
        folder = self.machines.folder / "pulled"
        folder.mkdir()
        timed = start(self.machines, [*argv, str(folder)], self.project.ours)
        with Resident(self.machines.mark, timed.process.pid) as resident:
            resident.begin()
            timed.finish()
            took = time.monotonic() - timed.began
        self.came = sum(path.stat().st_size for path in folder.rglob(name))
        shutil.rmtree(folder)
        if self.came < least:
            raise SideFailed(f"{argv} brought {self.came} bytes of {least}\n{timed.read_errors()}")
        if ours is not None:
            for end, peak in zip(("client", "agent"), resident.peaks, strict=True):
                self.figures.add(f"pull: {end}'s peak MB", *ours, peak)
        return took

    def measure_slow(self) -> None:
        """Follow a log beside a pull over a slow line, on one session as an attached run does."""
        started = start(self.machines, our_argv("-d", script=["late.py"]), self.project.ours)
        started.finish()
        run = max((self.project.ours / "runs").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
        facts = {"run": run.parent.name, "attempt": 1}
        with ChaosProxy(self.machines.sshd.port) as proxy:
            proxy.program = lambda _number: Program(rate=SLOW_RATE, slice=SEGMENT)
            session = self._connect(proxy.port)
            try:
                self._follow_and_pull(session, facts)
            finally:
                session.request("stop", **facts, grace=1.0, level="stop")
                session.close()
        self.machines.settle()

    def _connect(self, port: int) -> Session:
        sshd = self.machines.sshd
        known = self.machines.folder / "slow_known_hosts"
        known.write_text(known_line_for(sshd, port))
        transport = ParamikoTransport(sshd.target(port=port, known_hosts_files=(known,)))
        session = open_session(transport, read_agent(), sys.executable)
        session.submit("open", state_dir=None)
        return session

    def _follow_and_pull(self, session: Session, facts: dict[str, object]) -> None:
        log = session.new_stream()
        outputs = [{"stream": log, "name": "0", "offset": 0}]
        session.request("follow", outputs=outputs, wait=True, **facts)
        while b"at " not in getattr(session.next_item(30.0), "payload", b""):
            pass
        late, stream, came = Lateness(), session.new_stream(), 0
        with session.open_inbox(stream) as inbox, late.beside(session):
            session.request("get", path="big.bin", stream=stream, offset=0, block=BLOCK, **facts)
            began = time.monotonic()
            while time.monotonic() - began < self.options.slow_seconds:
                item = inbox.next_item(1.0)
                came += len(item.payload) if isinstance(item, Data) else 0
        if late.broken:
            raise SideFailed(f"beside the pull: {late.broken[0]}")
        self.figures.add("latency ms of a line, 1 MB/s", "ours", 0.0, *(value * 1e3 for value in late.lines))
        self.figures.add(
            "latency ms of an answer, 1 MB/s", "ours", 0.0, *(value * 1e3 for value in late.answers)
        )
        self.figures.add("pull MB/s meanwhile, 1 MB/s", "ours", 0.0, came / MB / self.options.slow_seconds)

    def measure_weights(self) -> None:
        """Bring a checkpoint whole, and its model alone."""
        code = self._run("model.py", str(self.options.layers))
        size = (Path(code) / "out" / "ckpt.pt").stat().st_size
        ways = {
            "whole": [],
            "--weights": ["--weights"],
            "--weights --dtype bf16": ["--weights", "--dtype", "bf16"],
        }
        for way, options in ways.items():
            argv = [COMMAND, "pull", *options, "--match", "out/ckpt.pt", "--to"]
            took = self._pull(argv, "*.*", size // 8, None)
            self.figures.add(f"{way}: MB", "ours", 0.0, self.came / MB)
            self.figures.add(f"{way}: s", "ours", 0.0, took)
            if way == "--weights":
                self.figures.add(PART, "ours", 0.0, self.came / size)


def make_side_budgets(figures: Figures, side: str, rtt: float) -> Iterator[Budget]:
    """Yield those of one of our transports; on a noisy machine the best of each side tells more than the median."""
    ours, scp = (figures.get("pull MB/s", each, rtt) for each in (side, "scp"))
    what = f"RTT {rtt:g} ms" + side.removeprefix("ours")
    if ours and (side, rtt) in LEAST:
        for name, typical in (("", statistics.median), (", best of each", max)):
            ratio = typical(ours) / typical(scp)
            yield Budget(f"pull / scp, {what}{name}", ratio, LEAST[side, rtt], at_least=True)
    for end in ("client", "agent"):
        peaks = figures.get(f"pull: {end}'s peak MB", side, rtt)
        if peaks:
            yield Budget(f"memory of the {end}, {what}", max(peaks), MEMORY_MB, " MB")


def make_budgets(figures: Figures, rtts: Sequence[float]) -> Iterator[Budget]:
    """Yield the budgets of DESIGN §6 and §11 that were measured."""
    for rtt in rtts:
        for side in OURS.values():
            yield from make_side_budgets(figures, side, rtt)
    for part in figures.get(PART, "ours", 0.0):
        yield Budget(PART, part, MOST_PART)
    for what in ("a line", "an answer"):
        late = sorted(figures.get(f"latency ms of {what}, 1 MB/s", "ours", 0.0))
        if late:
            p99 = late[-1 - len(late) // 100] / 1e3
            yield Budget(f"{what} beside a pull at 1 MB/s, p99", p99, LATE_SECONDS, " s")


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs of each [3]")
    parser.add_argument("--quick", action="store_true", help="1 run, a fifth of the bytes and of the time")
    parser.add_argument(
        "--rtt", type=lambda text: [float(word) for word in text.split(",")], default=[0.0, 100.0]
    )
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(KINDS), help=f"of {','.join(KINDS)}"
    )
    parser.add_argument(
        "--transport",
        type=lambda text: text.split(","),
        default=["paramiko"],
        help=f"of {','.join(OURS)} [paramiko]",
    )
    parser.add_argument("--pull-mb", type=int, default=1000, help="size of the file [1000]")
    parser.add_argument(
        "--slow-seconds", type=float, default=60.0, help="how long the slow line is watched [60]"
    )
    parser.add_argument("--layers", type=int, default=60, help="million parameters of the model [60]")
    parser.add_argument("--json", type=Path, help="write every single figure here")
    parser.add_argument("--seed", type=int, default=0, help="of the project's filler [0]")
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeat, options.pull_mb, options.slow_seconds, options.layers = 1, 200, 12.0, 12
    unknown = sorted({*options.only, *options.transport} - {*KINDS, *OURS})
    if unknown or not has_torch():
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "this Python has no torch")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; return the exit code."""
    options = parse_options(arguments)
    machine = read_machine() | {"file system": read_file_system(options.dir)}
    try:
        with running_machines(options.dir) as machines:
            pulls = Pulls(machines, options)
            pulls.measure()
    except SideFailed as failure:
        say(f"bench: {failure}")
        return 2
    figures = pulls.figures
    budgets = list(make_budgets(figures, options.rtt))
    tables = [render_machine(machine), render_figures(figures, options.rtt, SIDES), render_budgets(budgets)]
    print("\n\n".join(tables))
    if options.json:
        write_json(options.json, machine, figures, budgets)
    return 0 if all(budget.kept for budget in budgets) else 1


if __name__ == "__main__":
    sys.exit(main())
