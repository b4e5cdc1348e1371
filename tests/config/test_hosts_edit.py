"""hosts.toml as commands change it: comments and order stay, and what it means is what was asked for."""

from __future__ import annotations

import stat
import threading
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.config.hosts_edit import add_names, drop_host, set_host, set_pin
from remote_train.config.hosts_file import read_hosts
from remote_train.config.hosts_write import write_changed
from remote_train.config.toml_comments import cut_between, put_between
from remote_train.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = (Path(__file__).parents[2] / "hosts.example.toml").read_text()
FULL = """# mine
default = ["a", "b"]  # in this order

# the big one
[hosts.a]
address = ["10.0.0.1"]   # at home
host_key = "SHA256:4smxcQ3rBWm9hTQrMEFAHiM4ksV9QZpGfXKNMZ0G5qE"
venv = "~/venv"
[hosts.a.env]
X = "1"

[hosts."b.c"]  # dots
[hosts.b]
"""


def test_a_first_host_is_the_default_and_a_second_is_not() -> None:
    text = set_host("", "box", {"address": ["10.0.0.1"], "port": 2222})
    assert tomllib.loads(text) == {
        "default": ["box"],
        "hosts": {"box": {"address": ["10.0.0.1"], "port": 2222}},
    }
    assert tomllib.loads(set_host(text, "b", {}))["default"] == ["box"]
    assert "default" not in tomllib.loads(set_host("[hosts.a]\n", "b", {}))


def test_adding_leaves_everything_that_stands_there() -> None:
    for text in (
        FULL,
        EXAMPLE,
        "default = ['x']",
        "# only a comment\n",
        "[hosts]\n",
        "hosts.a.user = 'x'\n[hosts.b]\n",
    ):
        changed = set_host(text, "new", {"address": ["h"]})
        kept = [line for line in text.splitlines() if line.strip()]
        assert [line for line in changed.splitlines() if line in kept] == kept


def test_an_existing_name_is_refused_and_replaced_only_when_asked() -> None:
    with pytest.raises(UsageError, match="exists already"):
        set_host(FULL, "a", {})
    host = tomllib.loads(set_host(FULL, "a", {"address": ["h"]}, replace=True))["hosts"]["a"]
    assert host == {"address": ["h"], "venv": "~/venv", "env": {"X": "1"}}, (
        "the old way there, and its pin, are gone"
    )
    host = tomllib.loads(set_host(FULL, "a", {"python": "/p"}, replace=True))["hosts"]["a"]
    assert host == {"python": "/p", "env": {"X": "1"}}, "a host has one Python"


def test_a_host_leaves_with_its_places_in_default() -> None:
    left = drop_host(FULL, "a")
    assert tomllib.loads(left) == {"default": ["b"], "hosts": {"b.c": {}, "b": {}}}
    assert "# mine" in left
    assert "# in this order" in left
    assert "default" not in tomllib.loads(drop_host(drop_host(drop_host(FULL, "a"), "b"), "b.c"))
    with pytest.raises(UsageError, match="no host x"):
        drop_host(FULL, "x")


def test_a_pin_is_set_in_its_place() -> None:
    changed = set_pin(FULL, "a", "SHA256:new")
    assert changed == FULL.replace("SHA256:4smxcQ3rBWm9hTQrMEFAHiM4ksV9QZpGfXKNMZ0G5qE", "SHA256:new")


COMMENTED = """# mine

# of a
[hosts.a]
address = ["x"]
# port = 22
[hosts.a.env]
X = "1"
# below a

# --- the lab ---

# of b: do not
# touch
[hosts.b] # b
setup = ['''
# of nobody
[hosts.c]
''']

# [hosts.old]
"""


def test_a_comment_stays_with_the_table_it_stands_above() -> None:
    lab = "# --- the lab ---\n\n# of b: do not\n# touch\n[hosts.b] # b\n"
    above = COMMENTED[: COMMENTED.index(lab)]
    assert drop_host(COMMENTED, "a") == "# mine\n\n" + COMMENTED.removeprefix(above)
    assert drop_host(COMMENTED, "b") == above + "# --- the lab ---\n\n# [hosts.old]\n"
    pinned = COMMENTED.replace("# port = 22\n", "")
    assert set_pin(pinned, "a", "p") == pinned.replace('"x"]\n', '"x"]\nhost_key = "p"\n\n', 1)
    assert set_pin(COMMENTED, "b", "p") == COMMENTED.replace("''']\n", "''']\nhost_key = \"p\"\n")
    assert set_host(COMMENTED, "n", {"port": 1}) == COMMENTED + "\n[hosts.n]\nport = 1\n"


def test_a_comment_above_a_bare_table_of_all_hosts_outlives_them() -> None:
    text = "[hosts.b]\n# about all\n[hosts]\n# of a\n[hosts.a]\n"
    assert drop_host(text, "a") == "[hosts.b]\n\n# about all\n"
    assert "# about all" in drop_host(drop_host(text, "b"), "a")


PIECES = st.sampled_from(["\n", "# c\n", "  # d\n", "x = 1 # e\n", "y = '''\n# f\n[g]\n'''\n"])


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.lists(PIECES, max_size=5, unique=True), max_size=4))
def test_what_is_cut_from_between_tables_comes_back_in_its_place(parts: list[list[str]]) -> None:
    text = "".join(f"[t{number}]\n{''.join(part)}" for number, part in enumerate(parts))
    bare, between = cut_between(text)
    assert tomllib.loads(bare) == tomllib.loads(text)
    assert put_between(bare, between) == text


def test_names_are_added_once() -> None:
    assert tomllib.loads(add_names(FULL, ["a", "n", "n"])) == {
        **tomllib.loads(FULL),
        "hosts": {**tomllib.loads(FULL)["hosts"], "n": {}},
    }


def test_what_cannot_be_changed_soundly_is_refused() -> None:
    with pytest.raises(ConfigError):
        set_host("[hosts.a", "b", {})
    with pytest.raises(ConfigError):
        drop_host("[hosts.a\n", "a")


values = st.fixed_dictionaries(
    {}, optional={"address": st.just(["h"]), "user": st.text(max_size=8), "port": st.integers(1, 9)}
)
names = st.sampled_from(["a", "b", "b.c", "4", "x-y"])
layouts = st.sampled_from(
    ["", FULL, EXAMPLE, "[hosts]\na = {user = 'x'}\n", "hosts = {a = {}}\n", 'x = """\n[hosts.b]\n"""\n']
)


@settings(max_examples=15, deadline=None)
@given(text=layouts, steps=st.lists(st.tuples(names, values), min_size=1, max_size=4))
def test_any_changes_mean_what_they_mean_to_plain_data(
    text: str, steps: list[tuple[str, dict[str, object]]]
) -> None:
    for name, value in steps:
        before = tomllib.loads(text)
        text = set_host(text, name, value, replace=True)
        after = tomllib.loads(text)
        assert value.items() <= after["hosts"][name].items()
        others = {each: table for each, table in before.get("hosts", {}).items() if each != name}
        assert {each: table for each, table in after["hosts"].items() if each != name} == others
        gone = tomllib.loads(drop_host(text, name))
        assert name not in gone.get("hosts", {})
        assert name not in gone.get("default", [])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "config" / "hosts.toml"


def add(name: str) -> Callable[[str], str]:
    return partial(set_host, name=name, values={"address": ["10.0.0.1"]})


def test_it_is_written_for_its_owner_only_and_leaves_nothing_beside_it(place: Path) -> None:
    write_changed(place, add("box"), {})
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert [path.name for path in place.parent.iterdir()] == ["hosts.toml"]
    assert read_hosts(place, {}).default == ("box",)


def test_a_fault_leaves_the_file_as_it_was(place: Path) -> None:
    write_changed(place, add("box"), {})
    before = place.read_bytes()
    with pytest.raises(ConfigError, match="port"):
        write_changed(place, partial(set_host, name="b", values={"port": 0}), {})
    assert place.read_bytes() == before


def test_a_link_is_followed(place: Path, tmp_path: Path) -> None:
    place.parent.mkdir()
    (tmp_path / "dotfiles").mkdir()
    place.symlink_to(tmp_path / "dotfiles" / "hosts.toml")
    write_changed(place, add("box"), {})
    assert place.is_symlink()
    assert "box" in (tmp_path / "dotfiles" / "hosts.toml").read_text()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_go_on_ending_as_they_do(place: Path, newline: str) -> None:
    place.parent.mkdir()
    place.write_bytes(COMMENTED.replace("\n", newline).encode())
    write_changed(place, add("box"), {})
    raw = place.read_bytes()
    assert b"\n[hosts.box]" in raw
    assert raw.count(newline.encode()) == raw.count(b"\n")
    assert raw.count(b"\r") == (raw.count(b"\n") if newline == "\r\n" else 0)


def test_one_line_that_ends_otherwise_does_not_change_all_others(place: Path) -> None:
    place.parent.mkdir()
    place.write_bytes(COMMENTED.replace("\n", "\r\n", 1).encode())
    write_changed(place, add("box"), {})
    assert b"\r" not in place.read_bytes()


def test_a_file_that_others_may_write_is_not_built_upon(place: Path) -> None:
    write_changed(place, add("box"), {})
    place.chmod(0o666)
    with pytest.raises(ConfigError, match="written by other users"):
        write_changed(place, add("b"), {})


def test_changes_at_the_same_time_are_all_kept(place: Path) -> None:
    wanted = [f"h{number}" for number in range(8)]
    threads = [threading.Thread(target=write_changed, args=(place, add(name), {})) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_hosts(place, {}).hosts) == wanted
