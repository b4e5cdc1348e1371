"""Ask OpenSSH itself what ~/.ssh/config means for a host: `ssh -G`, 4 ms, no connection.

It resolves Include, Match and tokens exactly as the user's ssh does. The answer is an SshTarget, which names every
option in force that only ssh itself can follow (table in ssh_options.py), or a ConfigError.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from remote_train.config.addresses import Address, parse_address
from remote_train.config.ssh_options import (
    REFUSED,
    SYSTEM_WIDE,
    Options,
    find_unsupported,
    parse_options,
    render_option,
)
from remote_train.config.ssh_paths import (
    SshPlace,
    expand_agent,
    expand_home,
    expand_identity,
    expand_proxy_command,
    read_ssh_place,
    split_paths,
)
from remote_train.config.ssh_query import run_ssh_queries
from remote_train.errors import ConfigError, UsageError
from remote_train.transport.openssh_command import quote

if TYPE_CHECKING:
    from remote_train.config.host_spec import HostSpec

__all__ = ["SshPlace", "SshTarget", "read_ssh_place", "read_ssh_target"]

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_IDENTITIES = ("~/.ssh/id_rsa", "~/.ssh/id_ecdsa", "~/.ssh/id_ed25519")
_STRICTNESS: dict[str, Literal["yes", "ask", "accept-new"]] = {
    "true": "yes",
    "yes": "yes",
    "ask": "ask",
    "accept-new": "accept-new",
}


@dataclass(frozen=True)
class SshWay:
    """How the user's own ssh is started for one address of a host."""

    hostname: str
    """What the address means, as ssh_config has it."""
    program: tuple[str, ...]
    """ssh, and whose configuration it reads."""
    arguments: tuple[str, ...]
    """What hosts.toml says of the host, and last its address."""
    proxied: bool
    """It goes through a jump host or a command: whether the host answers, only ssh can find out."""
    patient: bool
    """ssh_config says itself how long to wait for the host."""
    keywords: frozenset[str]
    """The options that this ssh prints, in lower case: some are younger than others."""
    ciphers: str = ""
    """What to ask for where ssh_config says nothing of ciphers; "": as it says."""
    card: str | None = None
    """The library of PKCS11Provider."""
    jumps: tuple[SshWay, ...] = ()
    """How it goes to each host on the way, the nearest first (host_target.py knows them)."""


@dataclass(frozen=True)
class SshTarget:
    """Everything needed to connect to one address of a host; hosts.toml has already overridden ssh_config."""

    name: str
    address: str
    """As given: a host's several addresses differ in it."""
    hostname: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    """In the order to try; they need not exist."""
    identities_only: bool
    """Offer only these identities, though the agent may hold others."""
    identity_agent: str | None
    """A socket; "none" for no agent at all; None for $SSH_AUTH_SOCK."""
    known_hosts_files: tuple[Path, ...]
    """The user's first, then the system's; they need not exist."""
    host_key_alias: str | None
    address_family: Literal["any", "inet", "inet6"]
    connect_timeout: int | None
    """Seconds, if ssh_config sets one."""
    strict_host_key_checking: Literal["yes", "ask", "accept-new"]
    lacks: tuple[str, ...] = ()
    """What is in force for it that paramiko cannot do, as it stands in ssh_config."""
    way: SshWay | None = field(default=None, compare=False)
    """How the user's own ssh goes there; None where there is none."""
    certificate_files: tuple[Path, ...] = ()
    """Certificates besides those that lie beside their keys."""
    bind_address: str | None = None
    proxy_jump: str | None = None
    """As written: [user@]host[:port], several with commas, the nearest first."""
    proxy_command: str | None = None
    """For the user's shell, its tokens worked out."""
    proxy_written: str | None = None
    """The same as it stands in ssh_config."""
    hash_known_hosts: bool = False


def read_ssh_target(spec: HostSpec, address: str, place: SshPlace | None = None) -> SshTarget:
    """Read how to connect to one address of a host.

    Raises ConfigError when ssh_config is wrong or asks for what we do not support, each option by name.
    """
    place = place or read_ssh_place()
    try:
        where = parse_address(address)
    except ValueError as error:
        raise UsageError(f"host {spec.name}: address {address!r}: {error}") from None
    if place.ssh is None:
        if spec.transport == "openssh":
            raise ConfigError(
                [f'host {spec.name}: transport = "openssh", and there is no `ssh` on PATH'],
                hint="install the OpenSSH client",
            )
        return _make_target(spec, address, _make_plain_options(spec, where, place), place)
    options, lacks, ciphers = _read_options(spec, where, place, place.ssh)
    arguments = [*_make_key_arguments(spec, place), *_make_arguments(spec, where)]
    way = _make_way(options, (place.ssh, *place.config_arguments), arguments, ciphers)
    return replace(_make_target(spec, address, options, place), lacks=lacks, way=way)


def _read_options(
    spec: HostSpec, where: Address, place: SshPlace, ssh: str
) -> tuple[Options, tuple[str, ...], str]:
    """Return what is in force, what of it paramiko lacks, and ssh's own ciphers where none were chosen."""
    arguments = _make_arguments(spec, where)
    ours, plain = run_ssh_queries(
        [[ssh, "-G", *place.config_arguments, *arguments], [ssh, "-G", "-F", "none", *arguments]],
        place.environ,
    )
    options, baseline = parse_options(ours), parse_options(plain)
    unsupported = find_unsupported(options, baseline)
    if SYSTEM_WIDE.keys() & set(unsupported) and SYSTEM_CONFIG.is_file():
        command = [ssh, "-G", "-F", str(SYSTEM_CONFIG), *arguments]
        unsupported = _drop_system(
            unsupported, options, parse_options(run_ssh_queries([command], place.environ)[0])
        )
    _refuse(spec, options, unsupported)
    ciphers = (
        ""
        if options.get("ciphers") != baseline.get("ciphers")
        else put_fast_first(_first(options, "ciphers"))
    )
    return options, tuple(render_option(word, options) for word in unsupported), ciphers


def put_fast_first(ciphers: str | None) -> str:
    """Return ssh's list of ciphers with AES-GCM first, as paramiko asks for: half the work of its own first choice."""
    known = (ciphers or "").split(",")
    return ",".join(sorted(known, key=lambda name: not name.endswith("-gcm@openssh.com")))


def _make_way(options: Options, program: tuple[str, ...], arguments: list[str], ciphers: str) -> SshWay:
    proxied = any((_first(options, word) or "none") != "none" for word in ("proxyjump", "proxycommand"))
    return SshWay(
        hostname=options["hostname"][0],
        program=program,
        arguments=tuple(arguments),
        proxied=proxied,
        patient=(_first(options, "connecttimeout") or "none") not in {"none", "0"},
        keywords=frozenset(options),
        ciphers=ciphers,
        card=_first_set(options, "pkcs11provider"),
    )


def _make_arguments(spec: HostSpec, where: Address) -> list[str]:
    """Make the arguments for one host; what hosts.toml sets is given to ssh, for its tokens and Match lines."""
    user, port = where.user or spec.user, where.port or spec.port
    arguments = ["-l", user] if user else []
    arguments += ["-p", str(port)] if port else []
    return [*arguments, "--", where.host]


def _make_key_arguments(spec: HostSpec, place: SshPlace) -> list[str]:
    if spec.identity_file is None:
        return []
    # Not -i: ssh looks for a file of that name with %% in it, and takes its usual keys where there is none.
    path = quote(str(expand_home(spec.identity_file, place)).replace("%", "%%"))
    return ["-o", "IdentitiesOnly=yes", "-o", f"IdentityFile={path}"]


def _drop_system(unsupported: list[str], options: Options, system: Options) -> list[str]:
    return [word for word in unsupported if word not in SYSTEM_WIDE or options[word] != system.get(word)]


def _refuse(spec: HostSpec, options: Options, unsupported: list[str]) -> None:
    refused = [word for word in unsupported if word in REFUSED or spec.transport == "paramiko"]
    problems = [
        f"ssh_config: host {spec.name}: {render_option(word, options)}: not supported"
        + ("" if word in REFUSED else ' with transport = "paramiko"')
        for word in refused
    ]
    if _is_unchecked(options) and spec.host_key is None:
        problems.append(
            f"ssh_config: host {spec.name}: StrictHostKeyChecking no: not supported, host keys are always checked; "
            'write accept-new, or pin the key in hosts.toml: host_key = "SHA256:…"'
        )
    if not problems:
        return
    hint = (
        f"`ssh -G {options['host'][0]}` shows what is in force; take these out for this host, or give "
        "it another Host name in ~/.ssh/config"
    )
    if set(refused) - REFUSED.keys():
        hint = f'transport = "openssh" in hosts.toml uses ssh itself for {spec.name}, which follows them'
    raise ConfigError(problems, hint=hint)


def _is_unchecked(options: Options) -> bool:
    return options.get("stricthostkeychecking") in {("false",), ("no",), ("off",)}


def _make_plain_options(spec: HostSpec, where: Address, place: SshPlace) -> Options:
    """Make the options of a machine without ssh: OpenSSH's defaults, and ~/.ssh/config as paramiko reads it."""
    user = where.user or spec.user or place.user
    if user is None:
        raise ConfigError([f"host {spec.name}: this uid has no login name"], hint="set user in hosts.toml")
    known = place.home / ".ssh" / "known_hosts"
    defaults: Options = {
        "host": (where.host,),
        "hostname": (where.host,),
        "port": (str(where.port or spec.port or 22),),
        "user": (user,),
        "identityfile": _IDENTITIES,
        "userknownhostsfile": (f"{known} {known}2",),
        "globalknownhostsfile": ("/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2",),
    }
    config = place.home / ".ssh" / "config"
    if not os.path.lexists(config):
        return defaults
    # paramiko is not imported for anything else here, and only where there is no ssh.
    from remote_train.transport.paramiko_config import read_options  # noqa: PLC0415 - see above

    options = read_options(config, where.host, defaults, fixed=bool(where.user or spec.user))
    if where.port or spec.port:
        options["port"] = defaults["port"]
    unsupported = find_unsupported(options, defaults)
    _refuse(spec, options, [word for word in unsupported if word in REFUSED])
    if unsupported:
        shown = ", ".join(render_option(word, options) for word in unsupported)
        raise ConfigError(
            [
                f"{config}: host {spec.name}: {shown}: only ssh itself can follow this, and there is no `ssh` on PATH"
            ],
            hint="install the OpenSSH client",
        )
    return options


def _make_target(spec: HostSpec, address: str, options: Options, place: SshPlace) -> SshTarget:
    alias, timeout = _first(options, "hostkeyalias"), _first(options, "connecttimeout")
    return SshTarget(
        name=spec.name,
        address=address,
        hostname=options["hostname"][0],
        port=int(options["port"][0]),
        user=options["user"][0],
        identity_files=_make_identities(spec, options, place),
        identities_only=spec.identity_file is not None or _first(options, "identitiesonly") == "yes",
        identity_agent=expand_agent(_first(options, "identityagent"), options, place),
        known_hosts_files=split_paths(
            [*options.get("userknownhostsfile", ()), *options.get("globalknownhostsfile", ())], place
        ),
        host_key_alias=alias,
        address_family=_parse_family(_first(options, "addressfamily")),
        connect_timeout=int(timeout) if timeout and timeout.isdigit() else None,
        strict_host_key_checking=_choose_strictness(spec, options),
        certificate_files=tuple(
            expand_identity(value, options, place)
            for value in options.get("certificatefile", ())
            if value != "none"
        ),
        bind_address=_first_set(options, "bindaddress"),
        proxy_jump=_first_set(options, "proxyjump"),
        proxy_command=_make_proxy_command(options),
        proxy_written=_first_set(options, "proxycommand"),
        hash_known_hosts=_first(options, "hashknownhosts") == "yes",
    )


def _first(options: Options, keyword: str) -> str | None:
    values = options.get(keyword)
    return values[0] if values and values[0] else None


def _first_set(options: Options, keyword: str) -> str | None:
    value = _first(options, keyword)
    return None if value == "none" else value


def _make_proxy_command(options: Options) -> str | None:
    written = _first_set(options, "proxycommand")
    return None if written is None else expand_proxy_command(written, options)


def _make_identities(spec: HostSpec, options: Options, place: SshPlace) -> tuple[Path, ...]:
    if spec.identity_file is not None:
        return (expand_home(spec.identity_file, place),)
    written = [value for value in options.get("identityfile", ()) if value != "none"]
    return tuple(dict.fromkeys(expand_identity(value, options, place) for value in written))


def _parse_family(value: str | None) -> Literal["any", "inet", "inet6"]:
    return "inet" if value == "inet" else "inet6" if value == "inet6" else "any"


def _choose_strictness(spec: HostSpec, options: Options) -> Literal["yes", "ask", "accept-new"]:
    """A pinned key leaves nothing to ask or to accept."""
    if spec.host_key is not None:
        return "yes"
    return _STRICTNESS.get(_first(options, "stricthostkeychecking") or "ask", "ask")
