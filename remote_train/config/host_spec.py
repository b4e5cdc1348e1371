"""What the rest of the program sees of hosts.toml: plain frozen values, no reading, no checking."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

LOCAL = "local"
"""The name that always means this machine."""


@dataclass(frozen=True)
class HostSpec:
    """One host as the user describes it; None where ssh_config or the host itself decides."""

    name: str
    address: tuple[str, ...] = ()
    """Tried together; for a host of ~/.ssh/config its alias. Empty for `local`."""
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    """As written: absolute, or beginning with ~/ ."""
    host_key: str | None = None
    """The pin: SHA256: and 43 characters of base64, as ssh-keygen -l prints it."""
    transport: Literal["paramiko", "openssh"] | None = None
    """None: paramiko, unless this host needs what only ssh itself can do."""
    password: bool = False
    """Ask for the account's password where the host takes one; never stored."""
    proxy_jump: tuple[str, ...] | None = None
    """Names or addresses to go through, the nearest first; () for none; None: ssh_config decides."""
    jumps: tuple[HostSpec, ...] = ()
    """Those of `proxy_jump` as hosts, once all of hosts.toml has been read."""
    python: str | None = None
    """A name or path on the host; safe to stand in a shell's command line."""
    conda: str | None = None
    """A conda environment on the host: its name, or its folder, absolute or beginning with ~/ ."""
    uv: bool | Literal["ship"] = False
    """uv builds the project's environment there; "ship": with this laptop's own uv."""
    setup: tuple[str, ...] = ()
    """Lines of shell, run on the host before the training."""
    state_dir: str | None = None
    device: Literal["cuda", "cpu"] = "cuda"
    env: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    """Folder of the project, relative -> folder on the host, absolute or beginning with ~/ ."""
    peak_tflops: dict[str, float] = field(default_factory=dict)
    """dtype -> dense peak of one device in TFLOP/s; overrides the table."""

    @property
    def is_local(self) -> bool:
        """Tell this machine from a host behind SSH."""
        return self.name == LOCAL


@dataclass(frozen=True)
class Hosts:
    """All of hosts.toml; empty when there is no such file."""

    default: tuple[str, ...] = ()
    """Names to use when --host is not given, in order."""
    hosts: dict[str, HostSpec] = field(default_factory=dict)
    path: Path | None = None
    """Where it was read; None when no file exists."""


def make_local() -> HostSpec:
    """Make the spec of this machine."""
    return HostSpec(name=LOCAL, device="cpu")
