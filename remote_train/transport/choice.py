"""Whether a host needs ssh itself, and why: what paramiko cannot do is known before anything is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.transport import key_files, known_hosts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.transport import SshTarget

HARDWARE_KEYS = (b"sk-ssh-ed25519@openssh.com", b"sk-ecdsa-sha2-nistp256@openssh.com")


def find_need(target: SshTarget, lacks: Sequence[str], pin: str | None) -> str:
    """Find what only ssh can do for this host, in words; "" when paramiko can do all."""
    if lacks:
        return f"ssh_config says {', '.join(lacks)}"
    if not pin:
        files = known_hosts.read_known_hosts(target.known_hosts_files)
        names = known_hosts.make_host_names(target.addresses, target.port, target.host_key_alias)
        entries = known_hosts.find_entries(files, names)[0]
        if entries and all(entry.marker == "cert-authority" for entry in entries):
            return f"{entries[0].where} knows it by a certificate authority only"
    return _find_hardware_key(target)


def _find_hardware_key(target: SshTarget) -> str:
    """Name the key when every key file that is there lives in a security key."""
    places = [path for path in key_files.choose_key_files(target.identity_files) if path.is_file()]
    keys = [(path, key_files.read_public_key(path)) for path in places]
    if keys and all(key[4:].startswith(HARDWARE_KEYS) for _, key in keys):
        return f"{key_files.show_path(keys[0][0])} lives in a security key"
    return ""
