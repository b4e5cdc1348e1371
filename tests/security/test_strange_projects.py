"""What a stranger's project file may not say, in both files that are read: it neither redirects us nor runs anything here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remote_train.config.project import read_project
from remote_train.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [
    f'{key} = "evil"' for key in ("host", "user", "address", "port", "identity_file", "identityfile", "key")
]
LINES = [
    *TEXTS,
    *(
        f'{key} = "sh -c evil"'
        for key in ("proxy_command", "proxycommand", "proxy_jump", "setup", "pre", "hook")
    ),
    *(
        f'{key} = "/bin/evil"'
        for key in ("python", "venv", "conda", "state_dir", "hosts_file", "known_hosts")
    ),
    *(f'{key} = ["evil"]' for key in ("hosts", "default", "hooks", "keys", "users", "certificates")),
    'host_key = "SHA256:x"',
    'transport = "openssh"',
    "forward_agent = true",
    'runs = "/"',
]


@pytest.mark.parametrize("name", ["remote-train.toml", "pyproject.toml"])
@pytest.mark.parametrize("line", LINES)
def test_it_names_no_hosts_keys_or_commands(tmp_path: Path, name: str, line: str) -> None:
    head = "[tool.remote-train]\n" if name == "pyproject.toml" else ""
    (tmp_path / name).write_text(f"{head}{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_project(tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "table", ["[hosts.evil]", "[host]", "[ssh]", "[hooks]", "[env.host]", "[package.hosts]"]
)
@pytest.mark.parametrize("name", ["remote-train.toml", "pyproject.toml"])
def test_it_has_no_such_table(tmp_path: Path, name: str, table: str) -> None:
    table = table.replace("[", "[tool.remote-train.") if name == "pyproject.toml" else table
    (tmp_path / name).write_text(f'{table}\naddress = "evil"\n')
    with pytest.raises(ConfigError):
        read_project(tmp_path)
