"""A network of its own: a real sshd in a network namespace, and a cable to it that can be shaped, cut and renumbered.

pytestmark = NEEDS_NAMESPACES
with running_network(tmp_path / "far") as far:       # far.box answers at far.address
    far.drop(TO_HOST)                                # one way, as a firewall that forgot a connection
    far.lose(20)                                     # per cent of all packets, both ways
    far.shape("1mbit")
    far.renumber()                                   # this side gets another address: another Wi-Fi
    far.restore()
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Box, Laptop, kill_leftovers
from tests.sshd import public_line, running_sshd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TO_HOST, TO_LAPTOP = "input", "output"  # the host's hooks
_numbers = itertools.count()


def run(*argv: str) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"


@functools.cache
def why_not() -> str | None:
    """Return why there can be no namespaces here, None when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "nft", "tc") if shutil.which(tool) is None]
    if missing:
        return f"there is no {' and no '.join(missing)} (iproute2, nftables)"
    name = f"rt-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this kernel or container refuses network namespaces"
    try:
        tried = subprocess.run(
            ["ip", "netns", "exec", name, "nft", "add", "table", "inet", "t"],
            capture_output=True,
            check=False,
        )
        return "nft does not work in a namespace here" if tried.returncode else None
    finally:
        run("ip", "netns", "del", name)


def needs_namespaces() -> None:
    """Skip the test where there can be no namespaces, and say why."""
    why = why_not()
    if why is not None:
        pytest.skip(why)


@dataclass
class Far:
    """A box at the other end of a cable."""

    box: Box
    name: str
    cable: str
    net: str
    near: str

    @property
    def address(self) -> str:
        """Where the box answers."""
        return f"{self.net}.2"

    def inside(self, *argv: str) -> None:
        """Run a command in the box's network."""
        run("ip", "netns", "exec", self.name, *argv)

    def drop(self, direction: str) -> None:
        """Let no packet pass in a direction (TO_HOST, TO_LAPTOP)."""
        self.inside("nft", "add", "rule", "inet", "t", direction, "drop")

    def lose(self, per_cent: int) -> None:
        """Lose so many of all packets, both ways."""
        for direction in (TO_HOST, TO_LAPTOP):
            rule = ("numgen", "random", "mod", "100", "<", str(per_cent), "drop")
            self.inside("nft", "add", "rule", "inet", "t", direction, *rule)

    def reset(self) -> None:
        """Answer every packet of ours with a TCP reset."""
        rule = ("meta", "l4proto", "tcp", "reject", "with", "tcp", "reset")
        self.inside("nft", "add", "rule", "inet", "t", TO_HOST, *rule)

    def shape(self, rate: str) -> None:
        """Make the cable slow, both ways."""
        limit = ("root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")
        run("tc", "qdisc", "replace", "dev", self.cable, *limit)
        self.inside("tc", "qdisc", "replace", "dev", "far", *limit)

    def restore(self) -> None:
        """Undo drops, losses and resets."""
        self.inside("nft", "flush", "table", "inet", "t")

    def renumber(self) -> None:
        """Give this side another address and take the old one away: whoever spoke from it is cut off in silence."""
        run("ip", "addr", "del", f"{self.near}/24", "dev", self.cable)
        self.near = f"{self.net}.3"
        run("ip", "addr", "add", f"{self.near}/24", "dev", self.cable)

    def make_laptop(self, home: Path) -> Laptop:
        """Make a laptop that knows the box by its address."""
        home.mkdir(parents=True)
        laptop = Laptop(home)
        laptop.trust(f"[{self.address}]:{self.box.sshd.port} {public_line(self.box.sshd.host_keys[0])}")
        laptop.write_hosts(
            f'default = ["box"]\n[hosts.box]\n{self.box.describe(address=f"""["{self.address}"]""")}'
        )
        return laptop


@contextlib.contextmanager
def running_network(folder: Path) -> Iterator[Far]:
    """Lay a cable to a namespace with an sshd in it; both go when the block ends."""
    number = next(_numbers)
    name = f"rt-{os.getpid()}-{number}"
    cable = f"rt{os.getpid() % 1_000_000}n{number}"
    net = f"10.{64 + os.getpid() % 64}.{(os.getpid() // 64 + number * 7) % 256}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", cable, "type", "veth", "peer", "name", "far", "netns", name)
        run("ip", "addr", "add", f"{net}.1/24", "dev", cable)
        run("ip", "link", "set", cable, "up")
        inside = ("ip", "-n", name)
        run(*inside, "addr", "add", f"{net}.2/24", "dev", "far")
        for device in ("far", "lo"):
            run(*inside, "link", "set", device, "up")
        shell = ("ip", "netns", "exec", name)
        run(*shell, "nft", "add", "table", "inet", "t")
        for hook in (TO_HOST, TO_LAPTOP):
            run(*shell, "nft", f"add chain inet t {hook} {{ type filter hook {hook} priority 0; }}")
        home = folder / "home of box"
        home.mkdir(parents=True)
        lines = [f"ListenAddress {net}.2", f'SetEnv "HOME={home}"']
        with running_sshd(folder / "sshd", lines, prefix=shell) as sshd:
            box = Box(sshd, home)
            try:
                yield Far(box, name, cable, net, f"{net}.1")
            finally:
                kill_leftovers(box.root)
    finally:
        run("ip", "netns", "del", name)  # the cable goes with it
