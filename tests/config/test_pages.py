"""What our pages tell a person to write and to type is what we take."""

from __future__ import annotations

import pkgutil
import re
import shlex
import textwrap
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from remote_train import cli
from remote_train.cli.options import app
from remote_train.config.hosts_schema import make_hosts
from remote_train.config.toml_file import parse_toml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/hosts.md"]


def list_blocks(page: str) -> list[str]:
    """Return the indented blocks of a page, without the indent."""
    text = (ROOT / page).read_text("utf-8")
    return [textwrap.dedent(block) for block in re.findall(r"(?m)(?:^    .*\n|^\n(?=    ))+", text)]


def list_commands(page: str) -> Iterator[list[str]]:
    for line in "\n".join(list_blocks(page)).splitlines():
        if line.startswith("remote-train ") and "·" not in line and "[" not in line:
            yield shlex.split(re.sub(r"\.py .*", "", line), comments=True)[1:]  # a script's own are not ours


@pytest.mark.parametrize("page", PAGES)
def test_hosts_are_written_as_hosts_toml_has_them(page: str) -> None:
    found = [block for block in list_blocks(page) if "[hosts." in block]
    assert found
    for block in found:
        written = parse_toml(Path(page), block.replace("SHA256:…", f"SHA256:{'A' * 43}"))
        hosts = make_hosts(written, [])
        assert set(hosts.hosts) == set(re.findall(r"(?m)^\[hosts\.(\w+)", block))


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_are_there(page: str) -> None:
    for module in pkgutil.iter_modules(cli.__path__):
        import_module(f"{cli.__name__}.{module.name}")
    commands = list(list_commands(page))
    assert len(commands) > 5
    for words in commands:
        command = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert not hasattr(command, "commands"), words
        assert {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)} <= known, words
