"""A man in the middle: a proxy that leads new connections to another sshd, which has another key and takes our login.

Whoever logs in there has given himself away; `Between.attempts` counts what sshd says of such a thing.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_train.transport.known_hosts import make_fingerprint
from tests.e2e.machines import known_line, make_laptop
from tests.faults.chaos_proxy import RST, ChaosProxy
from tests.sshd import key_bytes, public_line, running_sshd, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.machines import Box, Done, Laptop
    from tests.sshd import Sshd

TRANSPORTS = ("paramiko", "openssh")
BEHIND = "openssh behind a jump host"
"""The jump host is honest, and what lies behind it is not."""


@dataclass
class Between:
    """The way from a laptop to its box, and who may be on it."""

    proxy: ChaosProxy
    box: Box
    evil: Sshd
    laptop: Laptop

    def take_over(self, *, cut: bool = False) -> None:
        """Lead what connects from now on to the wrong host; with `cut` what is connected has to connect anew."""
        self.proxy.retarget(self.evil.port)
        if cut:
            self.proxy.break_all(RST)

    def leave(self) -> None:
        """Lead to the true host again."""
        self.proxy.retarget(self.box.sshd.port)

    @property
    def visits(self) -> int:
        """Connections that the wrong host has had."""
        return self.evil.read_log().count("Connection from")

    def attempts(self) -> int:
        """What the wrong host heard of authentication: requests of the service, and of any method."""
        log = self.evil.read_log()
        wait_until(lambda: log.count("Connection from") <= self._ended(), "the ends of its connections")
        log = self.evil.read_log()
        return log.count("userauth") + log.count("Accepted") + log.count("Failed")

    def _ended(self) -> int:
        return self.evil.read_log().count("do_cleanup")

    def fingerprints(self) -> tuple[str, str]:
        """Of the true host and of the wrong one."""
        true, wrong = self.box.sshd.host_keys[0], self.evil.host_keys[0]
        return make_fingerprint(key_bytes(true)), make_fingerprint(key_bytes(wrong))

    def expect_refusal(self, words: str) -> None:
        """Check that both keys and the file and line were named, and that nothing was given away."""
        for needed in (*self.fingerprints(), "known_hosts:1", "remote-train hosts trust box"):
            assert needed in words, f"{needed} is not in\n{words}"
        assert self.attempts() == 0, self.evil.read_log()

    def expect_done(self, done: Done) -> None:
        """The same of a command that has ended, with exit code 11."""
        visits = self.visits
        done.expect(11)
        assert visits > 0, "it never came there"
        self.expect_refusal(done.err + done.out.decode(errors="replace"))


@contextlib.contextmanager
def standing_between(folder: Path, box: Box, transport: str, address: str = "127.0.0.1") -> Iterator[Between]:
    """Run the wrong host beside a box, and make a laptop that goes to the box through the proxy; at first truly."""
    with contextlib.ExitStack() as stack:
        evil = stack.enter_context(running_sshd(folder / "evil", ["LogLevel DEBUG3"]))
        proxy = stack.enter_context(ChaosProxy(box.sshd.port))
        with (evil.folder / "authorized_keys").open("a") as file:
            file.write(public_line(box.sshd.user_key) + "\n")
        laptop = make_laptop(folder / "laptop", box)
        known = [known_line(box.sshd).replace(str(box.sshd.port), str(proxy.port))]
        keys = {"port": str(proxy.port), "transport": f'"{transport}"', "address": f'["{address}"]'}
        gate = ""
        if transport == BEHIND:
            jump = stack.enter_context(running_sshd(folder / "gate"))
            (jump.folder / "authorized_keys").write_text(public_line(box.sshd.user_key) + "\n")
            known.append(known_line(jump))
            keys |= {"transport": '"openssh"', "proxy_jump": '"gate"'}
            gate = f"[hosts.gate]\n{box.describe(port=str(jump.port))}"
        laptop.trust(*known)
        laptop.write_hosts(f'default = ["box"]\n{gate}[hosts.box]\n{box.describe(**keys)}')
        yield Between(proxy, box, evil, laptop)
