"""What ssh is told of whose key may answer, so that it judges as we do (login.HostIdentity.judge).

ssh looks a key up under one name; a host with several addresses is known under any of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from remote_train.transport.key_files import choose_key_files, read_locked
from remote_train.transport.known_hosts import SSH_PORT, Verdict, find_entries, make_fingerprint, match_pin
from remote_train.transport.login import make_refusal, read_identity
from remote_train.transport.openssh_command import make_hop_policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.transport import Notify, SshTarget
    from remote_train.transport.known_hosts import Entry
    from remote_train.transport.login import HostIdentity
    from remote_train.transport.openssh_command import Policy


def hold_to(identity: HostIdentity, policy: Policy) -> Policy:
    """Return the policy for one host: the name that it is known under, and whether a key of ours has a passphrase.

    A key of another type than the known is no question.

    Raises HostKeyRefused for a key that ssh would take under that name, though it is revoked under another.
    """
    alias = choose_alias(identity)
    seen = find_entries(identity.files, [alias] if alias else identity.names)[0]
    entries = find_entries(identity.files, names_of(identity))[0]
    unseen = [e for e in entries if e.marker == "revoked" and e not in seen]
    _refuse_revoked(identity, seen, unseen)
    # Where a key is known, ssh asks about no other by itself, unless it is of a type that this ssh cannot read.
    known = any(not entry.marker for entry in seen)
    locked = policy.prompts and any(map(read_locked, choose_key_files(identity.target.identity_files)))
    return replace(policy, alias=alias, strict="yes" if known or unseen else policy.strict, locked=locked)


def read_hops(
    hops: Sequence[SshTarget], policy: Policy, notify: Notify | None
) -> tuple[tuple[HostIdentity, ...], Policy]:
    """Read what is known of the hosts on the way, and return it with the policy that says what the ssh to each is told."""
    identities = tuple(read_identity(hop, hop.pin, notify) for hop in hops)
    jumps = tuple(hold_to(identity, make_hop_policy(identity.target, policy)) for identity in identities)
    return identities, replace(policy, jumps=jumps)


def choose_alias(identity: HostIdentity) -> str | None:
    """Return the one name under which the key of a host with several addresses is known; None: ssh's own choice."""
    if identity.target.host_key_alias or len(identity.target.addresses) < 2:
        return None
    names = names_of(identity)
    markers = {name: {entry.marker for entry in find_entries(identity.files, [name])[0]} for name in names}
    for wanted in ("", "cert-authority"):
        for name in names:
            if wanted in markers[name]:
                return name
    return names[0]


def names_of(identity: HostIdentity) -> tuple[str, ...]:
    """Return the names of a host, and last those of port 22, whose key ssh takes on any other port too."""
    target = identity.target
    if target.host_key_alias or target.port == SSH_PORT:
        return identity.names
    return (*identity.names, *(address.lower() for address in target.addresses))


def _refuse_revoked(identity: HostIdentity, seen: Sequence[Entry], unseen: Sequence[Entry]) -> None:
    trusted = [entry.key for entry in seen if not entry.marker]
    for entry in unseen:
        if match_pin(identity.pin, entry.key) if identity.pin else entry.key in trusted:
            offered = f"{entry.key_type} {make_fingerprint(entry.key)}"
            raise make_refusal(
                identity, identity.target.addresses[0], Verdict("revoked", (entry,)), offered
            ) from None
