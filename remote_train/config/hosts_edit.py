"""Changes to the text of hosts.toml that keep its comments, its order and its layout: text in, text out.

tomlkit is imported where a change is made only: it costs 80 ms that no launch pays. What keys may hold is the schema's
matter (`hosts_schema`); here each change is checked against the same change to plain data.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from remote_train.config.toml_comments import cut_between, put_between
from remote_train.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HEAD = "# The hosts you train on; every key is explained in hosts.example.toml.\n\n"
WAY = ("address", "user", "port", "identity_file", "proxy_jump", "host_key", "transport")
"""Keys that say how a host is reached: a replaced host is reached in the new way only, the rest of it stays."""
PYTHONS = ("python", "venv", "conda", "uv")
"""Keys of which a host has one."""

Data = dict[str, Any]


def set_host(
    text: str, name: str, values: Mapping[str, Any], *, replace: bool = False, default: bool = True
) -> str:
    """Return the text with [hosts.NAME]; with `default` the first host becomes the default where none is set.

    With `replace` an existing host keeps what says nothing of how it is reached; else its name is a UsageError.
    """
    if not replace and name in _read(text).get("hosts", {}):
        raise UsageError(
            f"host {name} exists already",
            hint="--replace describes it anew; `remote-train hosts list` shows it",
        )

    def change(data: Any) -> None:  # noqa: ANN401 - plain data, or tomlkit's containers
        hosts = data.setdefault("hosts", {})
        if name not in hosts:
            hosts[name] = dict(values)
            return
        stale = {*WAY, *(PYTHONS if any(key in values for key in PYTHONS) else ())} - {*values}
        for key in [key for key in hosts[name] if key in stale]:
            del hosts[name][key]
        for key, value in values.items():
            hosts[name][key] = value

    changed = _change(text or HEAD, change)
    data = _read(changed)
    first = "default" not in data and len(data["hosts"]) == 1
    return _put_default(changed, name) if default and first else changed


def add_names(text: str, names: Sequence[str]) -> str:
    """Return the text with an empty table for each name that has none: ~/.ssh/config says how it is reached."""
    known = _read(text).get("hosts", {})
    for name in dict.fromkeys(names):
        text = text if name in known else set_host(text, name, {}, default=False)
    return text


def drop_host(text: str, name: str) -> str:
    """Return the text without [hosts.NAME] and without its name in `default`; UsageError when it is not there."""
    _expect(text, name)

    def change(data: Any) -> None:  # noqa: ANN401 - as above
        del data["hosts"][name]
        while name in data.get("default", ()):
            data["default"].remove(name)
        if "default" in data and not data["default"]:
            del data["default"]

    return _change(text, change)


def set_pin(text: str, name: str, pin: str) -> str:
    """Return the text with another `host_key` for a host; UsageError when it is not there."""
    _expect(text, name)

    def change(data: Any) -> None:  # noqa: ANN401 - as above
        data["hosts"][name]["host_key"] = pin

    return _change(text, change)


def _expect(text: str, name: str) -> None:
    if name not in _read(text).get("hosts", {}):
        raise UsageError(
            f"there is no host {name} in hosts.toml", hint="`remote-train hosts list` shows them"
        )


def _read(text: str) -> Data:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ConfigError([f"hosts.toml: {error}"]) from None


def _change(text: str, change: Callable[[Any], None]) -> str:
    """Do the same to the text and to what it means; where they come apart, nothing is changed."""
    import tomlkit  # noqa: PLC0415 - see the top
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415

    wanted = _read(text)
    change(wanted)
    try:
        bare, between = cut_between(text)
        document = tomlkit.parse(bare)
        change(document)
        changed = put_between(tomlkit.dumps(document), between)
        if _without_nothing(tomllib.loads(changed)) == _without_nothing(wanted):
            return changed
    except (TOMLKitError, ValueError):
        pass
    raise ConfigError(
        ["hosts.toml is written in a way that cannot be changed without spoiling it"],
        hint="write each host as a table of its own, [hosts.NAME], or make the change by hand",
    )


def _without_nothing(data: Data) -> Data:
    """A table of no hosts says nothing, and may be absent."""
    return data if data.get("hosts") else {key: value for key, value in data.items() if key != "hosts"}


def _put_default(text: str, name: str) -> str:
    """Put `default` above the first table and that table's own comment; below it, it would belong to the table."""
    lines = text.splitlines(keepends=True)
    first = next((number for number, each in enumerate(lines) if each.lstrip().startswith("[")), len(lines))
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    changed = "".join([*lines[:first], f'default = ["{name}"]\n\n', *lines[first:]])
    try:
        return changed if tomllib.loads(changed) == {**tomllib.loads(text), "default": [name]} else text
    except ValueError:  # the bracket stood in a value of many lines
        return text
