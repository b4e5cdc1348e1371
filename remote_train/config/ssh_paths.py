"""Paths of ssh_config as `ssh -G` prints them: tokens, variables and ~ worked out, $HOME respected.

`ssh -G` expands the known_hosts files itself but prints IdentityFile as written (OpenSSH 9.2 tried); what it
expands, it expands with the passwd home. Who we are (SshPlace) lives here too.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from remote_train.config.ssh_options import Options

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TOKEN = re.compile(r"%(.?)")
# Paths of one line are not quoted by ssh -G; each is absolute, so a space before / or ~ ends one.
_GAP = re.compile(r" +(?=[/~])")


@dataclass(frozen=True)
class SshPlace:
    """Whose ssh_config it is."""

    home: Path
    """$HOME: where we look."""
    passwd_home: Path
    """Where OpenSSH looks, whatever $HOME says."""
    environ: Mapping[str, str]
    user: str | None
    """The login name of this uid: ssh's default."""
    ssh: str | None
    """The ssh binary; None when there is none."""

    @property
    def config_arguments(self) -> list[str]:
        """The arguments that make ssh read the config of $HOME, also when that is not the passwd home."""
        if self.home == self.passwd_home:
            return []
        config = self.home / ".ssh" / "config"
        return ["-F", str(config) if config.exists() else "none"]


def read_ssh_place(environ: Mapping[str, str] = os.environ) -> SshPlace:
    """Read from the environment and the passwd file who we are."""
    user, passwd_home = _read_passwd(environ)
    home = Path(environ["HOME"]) if environ.get("HOME") else passwd_home
    return SshPlace(home, passwd_home, environ, user, shutil.which("ssh", path=environ.get("PATH")))


def _read_passwd(environ: Mapping[str, str]) -> tuple[str | None, Path]:
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:  # a uid without a passwd line, as in some containers: ssh itself will refuse to start
        return environ.get("LOGNAME"), Path.home()
    return entry.pw_name, Path(entry.pw_dir)


def split_paths(values: Iterable[str], place: SshPlace) -> tuple[Path, ...]:
    """Split the lists of known_hosts files, leave out "none", and put them under $HOME where ssh used passwd's."""
    paths = [part for value in values for part in _GAP.split(value) if part != "none"]
    return tuple(dict.fromkeys(_rehome(part, place) for part in paths))


def expand_identity(written: str, options: Options, place: SshPlace) -> Path:
    """Expand an IdentityFile. Raises ConfigError for a token or variable that we cannot expand."""
    return _rehome(_expand(written, options, place), place)


def expand_proxy_command(written: str, options: Options) -> str:
    """Expand the tokens of a ProxyCommand, %h %n %p %r and %%; raise ConfigError for any other."""
    tokens = {
        "%": "%",
        "h": options["hostname"][0],
        "n": options["host"][0],
        "p": options["port"][0],
        "r": options["user"][0],
    }
    return _TOKEN.sub(lambda match: _look_up(tokens, match[1], written, f"%{match[1]}"), written)


def expand_agent(written: str | None, options: Options, place: SshPlace) -> str | None:
    """Expand an IdentityAgent: a socket's path, "none", or None for the agent of $SSH_AUTH_SOCK."""
    if written is None or written in {"none", "SSH_AUTH_SOCK"}:
        return "none" if written == "none" else None
    if written.startswith("$") and not written.startswith("${"):
        return place.environ.get(written[1:], "none")
    return str(_rehome(_expand(written, options, place), place))


def expand_home(text: str, place: SshPlace) -> Path:
    """Expand ~/ by $HOME."""
    return place.home / text[2:] if text.startswith("~/") else Path(text)


def _rehome(text: str, place: SshPlace) -> Path:
    path = expand_home(text, place)
    if place.home != place.passwd_home and path.is_relative_to(place.passwd_home):
        return place.home / path.relative_to(place.passwd_home)
    return path


def _expand(written: str, options: Options, place: SshPlace) -> str:
    tokens = _make_tokens(options, place)

    def replace_token(match: re.Match[str]) -> str:
        return _look_up(tokens, match[1], written, f"%{match[1]}")

    def replace_variable(match: re.Match[str]) -> str:
        return _look_up(place.environ, match[1], written, match[0])

    return _VARIABLE.sub(replace_variable, _TOKEN.sub(replace_token, written))


def _look_up(table: Mapping[str, str], key: str, written: str, shown: str) -> str:
    if key not in table:
        raise ConfigError([f"ssh_config: {written}: {shown} is not known here"])
    return table[key]


def _make_tokens(options: Options, place: SshPlace) -> dict[str, str]:
    """Make the tokens of ssh_config(5) that IdentityFile accepts; %C, a hash, is left out."""
    host = socket.gethostname()
    return {
        "%": "%",
        "d": str(place.home),
        "h": options["hostname"][0],
        "i": str(os.getuid()),
        "k": (options.get("hostkeyalias") or options["host"])[0],
        "L": host.partition(".")[0],
        "l": host,
        "n": options["host"][0],
        "p": options["port"][0],
        "r": options["user"][0],
        "u": place.user or "",
    }
