"""~/.ssh/config as paramiko reads it, for a machine without ssh; what it would misread is refused.

It does not know Include, runs the commands of Match exec by another shell's rules, and asks the network for
CanonicalizeHostname. The system's own ssh_config is not read: what distributions set there is for their ssh.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import paramiko  # type: ignore[import-untyped]

from remote_train.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Options = dict[str, tuple[str, ...]]

_MISREAD = re.compile(
    r"[ \t]*(?P<word>include|canonicalizehostname|match[ \t=].*?\b(exec|localnetwork|tagged|version|sessiontype|command))\b",
    re.IGNORECASE,
)


def read_options(path: Path, host: str, defaults: Mapping[str, tuple[str, ...]], *, fixed: bool) -> Options:
    """Return what the file says of a host, in the shape of `ssh -G`, over `defaults`; `fixed`: keep their user.

    Raises ConfigError for a file that cannot be read as ssh would.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        for number, line in enumerate(text.splitlines(), start=1):
            if found := _MISREAD.match(line):
                raise ConfigError(
                    [
                        f"{path}:{number}: {found['word']}: only ssh itself can follow this, and there is no `ssh` on PATH"
                    ],
                    hint="install the OpenSSH client, or write what this host needs into hosts.toml and this file",
                )
        found_options = paramiko.SSHConfig.from_text(text).lookup(host)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except (paramiko.SSHException, ValueError) as error:
        raise ConfigError(
            [f"{path}: {error}"], hint="install the OpenSSH client to hear more of it"
        ) from None
    options: Options = dict(defaults)
    for keyword, value in found_options.items():
        if keyword == "user" and fixed:
            continue
        options[keyword] = tuple(value) if isinstance(value, list) else (str(value),)
    return options
