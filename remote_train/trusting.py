"""`hosts trust`: look at the key that a host offers, without logging in, and have a person say whether it is right.

An unknown key takes a yes. A changed one takes its new fingerprint, typed or given: no answer that a hand could give by
habit replaces a key. A revoked one is never taken.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from remote_train.config.host_target import HostTarget, read_target
from remote_train.config.hosts_edit import set_pin
from remote_train.config.hosts_write import write_changed
from remote_train.errors import HostKeyRefused, Unreachable
from remote_train.transport import login
from remote_train.transport.dial import Dialled, Dialling, Refused, limit_seconds
from remote_train.transport.known_hosts import make_fingerprint, match_pin
from remote_train.transport.known_hosts_edit import replace_known_host
from remote_train.transport.openssh_command import Policy, make_jump_command
from remote_train.transport.openssh_trust import read_hops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from remote_train.config.host_spec import HostSpec
    from remote_train.transport import Ask
    from remote_train.transport.paramiko_gate import Gate
    from remote_train.transport.paramiko_look import KeySeen

    TypeIn = Callable[[str], str]

KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")
"""Types that a stated fingerprint may be of; one connection each, where the usual one brought another."""


@dataclass(frozen=True)
class Offer:
    """The key that one address of a host has proved to hold, and why a login would refuse it; None: it would not."""

    address: str
    key_type: str
    key: bytes
    refusal: HostKeyRefused | None

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it."""
        return make_fingerprint(self.key)

    @property
    def verdict(self) -> str:
        """What the files, or the pin, say of it."""
        return str(self.refusal.facts["verdict"]) if self.refusal else "match"


def make_single(target: HostTarget, address: str) -> HostTarget:
    """Return the target with one of its addresses; where only ssh can log in on the way there, ssh leads to it."""
    single = replace(target, addresses=(address,))
    way = next((way for way in target.ways if way.hostname == address and way.jumps), None)
    if way is None or not any(hop.need for hop in target.jumps):
        return single
    policy = read_hops(target.jumps, Policy(target.strict_host_key_checking, prompts=False), None)[1]
    command = make_jump_command(way, policy)
    tokens = {"h": address, "p": str(target.port)}
    line = re.sub("%(.)", lambda token: tokens.get(token[1], token[1]), command)
    return replace(single, jumps=(), proxy_commands={address: line})


@dataclass(frozen=True)
class Trusting:
    """One host whose key is in question, and who can be asked about it."""

    host: HostSpec
    hosts_file: Path | None = None
    ask: Ask | None = None
    type_in: TypeIn | None = None
    gates: list[Gate] = field(default_factory=list)
    """Jump hosts that have let us in: one login there is enough for all that is looked at behind them."""

    def trust(self, stated: str | None) -> dict[str, Any]:
        """Have the host's key trusted from now on, and return what was done; `stated` is the fingerprint it must have.

        Raises Unreachable, or HostKeyRefused with both fingerprints when nobody says that the key is right.
        """
        target = read_target(self.host)
        with closing(self):
            offers = list(self.look(target))
            offer = self._choose(target, offers, stated)
        row: dict[str, Any] = {
            "host": self.host.name,
            "key_type": offer.key_type,
            "fingerprint": offer.fingerprint,
        }
        row |= {
            "verdict": offer.verdict,
            "addresses": [each.address for each in offers if each.key == offer.key],
        }
        if offer.refusal is None:
            return {**row, "files": []}
        self._decide(offer, offer.refusal, stated)
        return {
            **row,
            "was": offer.refusal.facts.get("known") or self.host.host_key,
            "files": self._write(target, offer),
        }

    def close(self) -> None:
        """Leave the jump hosts."""
        while self.gates:
            self.gates.pop().close()

    def look(self, target: HostTarget, kinds: Sequence[str] = ()) -> Iterator[Offer]:
        """Look at the key of each address that answers, asking for `kinds` first; Unreachable when none does."""
        identity = login.read_identity(target, self.host.host_key, None)
        absent: list[str] = []
        found = 0
        for address, dialled in self._dial(target):
            single = make_single(target, address)
            try:
                if isinstance(dialled, Refused):
                    raise Unreachable(dialled.reason)  # noqa: TRY301 - as when a jump host says so
                seen = self._read(single, dialled, kinds)
            except Unreachable as error:
                absent.append(error.message)
                continue
            found += 1
            refusal = login.make_host_key_error(identity, address, seen.key_type, seen.key)
            yield Offer(address, seen.key_type, seen.key, refusal)
        if not found:
            raise Unreachable(f"{self.host.name}: {'; '.join(absent)}")

    def _dial(self, target: HostTarget) -> list[tuple[str, Dialled | Refused | None]]:
        """Dial all addresses at once; None for each where the way leads through other hosts or a command."""
        if target.jumps or target.proxy_commands:
            return [(address, None) for address in target.addresses]
        limit = limit_seconds(target.connect_timeout)
        diallings = [(each, Dialling(replace(target, addresses=(each,)), limit)) for each in target.addresses]
        return [(address, dialling.wait()) for address, dialling in diallings]

    def _read(self, single: HostTarget, dialled: Dialled | None, kinds: Sequence[str]) -> KeySeen:
        from remote_train.transport.paramiko_look import read_offered_key  # noqa: PLC0415 - 150 ms

        return read_offered_key(single, dialled, kinds, self.gates, self.ask)

    def find_stated(self, target: HostTarget, stated: str) -> Offer | None:
        """Look for the key of this fingerprint among a host's keys of other types; None: it has none such."""
        for kind in KEY_TYPES:
            for offer in self.look(target, (kind,)):
                if match_pin(stated, offer.key):
                    return offer
        return None

    def _choose(self, target: HostTarget, offers: Sequence[Offer], stated: str | None) -> Offer:
        """Choose the key in question: the stated one, else the only one that is offered."""
        if stated is not None:
            offer = next((each for each in offers if match_pin(stated, each.key)), None)
            offer = offer or self.find_stated(target, stated)
            if offer is None:
                raise self._refuse(f"{self._list(offers)}; not {stated}", offers, "nothing was changed")
        elif len({offer.key for offer in offers}) > 1:
            hint = f"one of them may be another machine: {self._command('SHA256:…')} takes the right one"
            raise self._refuse(f"its addresses offer different keys: {self._list(offers)}", offers, hint)
        else:
            offer = offers[0]
        if offer.refusal is not None and offer.verdict == "revoked":
            raise offer.refusal
        return offer

    def _decide(self, offer: Offer, refusal: HostKeyRefused, stated: str | None) -> None:
        """Return when somebody has said that the key is right; raise the refusal otherwise."""
        if stated is not None:  # and found: it is the key that was asked for
            return
        hint = f"compare it with what the host itself says, then: {self._command(offer.fingerprint)}"
        asking = self.ask if offer.verdict == "unknown" else self.type_in
        if asking is None:
            raise HostKeyRefused(refusal.message, hint=hint, **refusal.facts)
        sentence = f"{refusal.message[:1].upper()}{refusal.message[1:]}."
        if offer.verdict == "unknown":
            accepted = bool(self.ask and self.ask(f"{sentence}\nTrust it?"))
        else:
            words = f"{sentence}\nSomebody may be listening in. To replace the old key, type the new fingerprint, as the host's owner tells it"
            accepted = bool(self.type_in and self.type_in(words).strip().rstrip("=") == offer.fingerprint)
        if not accepted:
            raise HostKeyRefused(refusal.message, hint="nothing was changed", **refusal.facts, declined=True)

    def _write(self, target: HostTarget, offer: Offer) -> list[str]:
        """Write the key where it is looked up: the pin, where the host has one, else known_hosts."""
        if self.host.host_key is not None:
            edit = partial(set_pin, name=self.host.name, pin=offer.fingerprint)
            return [str(write_changed(self.hosts_file, edit, os.environ))]
        names, hashed = login.HostIdentity(target, ()).names, target.hash_known_hosts
        files = target.known_hosts_files
        return list(map(str, replace_known_host(files, names, offer.key_type, offer.key, hashed=hashed)))

    def _refuse(self, message: str, offers: Sequence[Offer], hint: str) -> HostKeyRefused:
        offered = [f"{each.key_type} {each.fingerprint}" for each in offers]
        return HostKeyRefused(f"{self.host.name}: {message}", hint=hint, verdict="unknown", offered=offered)

    def _list(self, offers: Sequence[Offer]) -> str:
        return ", ".join(f"{each.address} offers {each.key_type} {each.fingerprint}" for each in offers)

    def _command(self, fingerprint: str) -> str:
        return f"remote-train hosts trust {shlex.quote(self.host.name)} --key {fingerprint}"
