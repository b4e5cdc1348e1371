from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from platformdirs import user_config_path

from remote_train.config.hostnames import choose_host
from remote_train.config.hosts_file import Hosts, HostSpec, hosts_path, read_hosts
from remote_train.config.toml_file import MAX_BYTES
from remote_train.errors import ConfigError
from remote_train.preparing import Request, make_route
from tests.config.bad_files import BadFile, check_problems, read_bad_files

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "hosts.example.toml"
GOOD = """\
default = ["4070ti", "alias-box", "local", "me@10.0.0.1:2222"]
[hosts.4070ti]
address = ["192.168.1.36", "box.tailnet.ts.net", "[fd00::1]:2222", "fd00::2", "box.lan:2200"]
user = "me"
port = 2022
identity_file = "~/.ssh/id_gpu"
host_key = "SHA256:4smxcQ3rBWm9hTQrMEFAHiM4ksV9QZpGfXKNMZ0G5qE="
transport = "openssh"
python = "~/miniconda3/envs/torch-2.4+cu/bin/python"
state_dir = "/data/state"
device = "cpu"
env = { HF_HOME = "/data/hf" }
[hosts.4070ti.data]
"./data/openwebtext/" = "/mnt/ssd/owt"
[hosts.4070ti.peak_tflops]
bf16 = 80.2
fp32 = 40
[hosts."box.lan"]
venv = "~/venvs/t/"
"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "home" / ".ssh"
    ssh.mkdir(parents=True)
    (ssh / "config").write_text("Host alias-box\n  User me\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    monkeypatch.delenv("REMOTE_TRAIN_HOSTS", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hosts.toml"


def write_private(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(0o600)
    return path


def fail(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_hosts(path)
    assert caught.value.exit_code == 2
    return caught.value


BAD = read_bad_files("bad_hosts.txt")


def test_the_table_is_large() -> None:
    assert len(BAD) >= 80
    assert len({bad.text for bad in BAD}) == len(BAD)
    assert all(bad.expected for bad in BAD)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_file_names_line_key_and_hint(bad: BadFile, path: Path) -> None:
    tomllib.loads(bad.text)
    check_problems(fail(write_private(path, bad.text)).problems, path, bad)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_line_ends_of_windows_do_not_move_lines(bad: BadFile, path: Path) -> None:
    content = b"\xef\xbb\xbf" + bad.text.replace("\n", "\r\n").encode()
    check_problems(fail(write_private(path, content)).problems, path, bad)


SYNTAX: list[tuple[str, bytes, str]] = [
    ("no value", b"a = 1\nb =\n", ":2:4: Invalid value"),
    ("no equals", b"default\n", ":1:8: Expected '='"),
    ("open table", b"[hosts.a\n", ":1:9: "),
    ("open string", b'[hosts.a]\nuser = "me\n', ":2:11: "),
    ("open list at the end", b'default = ["a"\n', ":2: Unclosed array"),
    ("key twice", b"[hosts.a]\nport = 1\nport = 2\n", ":3:9: Cannot overwrite a value"),
    ("table twice", b"[hosts.a]\n[hosts.a]\n", ":2:9: Cannot declare"),
    ("NUL", b"a = 1\x00\n", ":1:6: "),
    ("bare carriage return", b"a = 1\rb = 2\n", ":1:6: "),
    ("dotted name of the host in a value", b"hosts.a = box.lan\n", ":1:11: Invalid value"),
    ("bad escape", b'[hosts.a]\nuser = "\\x"\n', ":2:11: Unescaped"),
    ("bad date", b"a = 2024-13-45\n", ":1:"),
    ("not UTF-8", b'[hosts.a]\nuser = "m\xfcller"\n', ":2: is not UTF-8 (byte 0xfc)"),
    ("UTF-16", "default = []\n".encode("utf-16"), ":1: is not UTF-8"),
    ("half a character", b"# \xe2\x82\n", ":1: is not UTF-8"),
    ("deep lists", b"a = " + b"[" * 100_000, ": nested too deeply"),
    ("deep closed lists", b"a = " + b"[" * 5000 + b"]" * 5000, ": nested too deeply"),
    ("deep tables", b"a = " + b"{a=" * 50_000, ": nested too deeply"),
    ("number without end", b"a = " + b"1" * 5000 + b"\n", ":2: Exceeds the limit"),
    ("larger than allowed", b"#" * (MAX_BYTES + 1), ": is larger than 1,000,000 bytes"),
    ("50 MB", b"#" * 50_000_000, ": is larger than 1,000,000 bytes"),
]


@pytest.mark.parametrize(("name", "content", "message"), SYNTAX, ids=[name for name, _, _ in SYNTAX])
def test_what_is_not_toml_is_refused_with_its_place(
    name: str, content: bytes, message: str, path: Path
) -> None:
    problems = fail(write_private(path, content)).problems
    assert len(problems) == 1, name
    assert problems[0].startswith(f"{path}{message}"), problems


def make_folder(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_folder, "is a folder, not a file"),
        (make_fifo, "is a FIFO, not a file"),
        (make_loop, "cannot be read: Too many levels of symbolic links"),
        (make_dangling, "cannot be read: No such file or directory"),
        (make_device, "is a device, not a file"),
    ],
)
def test_what_is_not_a_file_is_refused_without_waiting(
    make: Callable[[Path], None], message: str, path: Path
) -> None:
    make(path)
    assert message in fail(path).problems[0]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_a_file_others_can_write_is_refused(mode: int, path: Path) -> None:
    write_private(path, GOOD).chmod(mode)
    error = fail(path)
    assert f"can be written by other users (mode {mode:04o})" in error.problems[0]
    assert error.hint == f"chmod go-w '{path}'"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(path: Path) -> None:
    os.chown(write_private(path, GOOD), 12345, -1)
    assert "belongs to another user (uid 12345)" in fail(path).problems[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_of_root_is_accepted_and_an_unreadable_one_refused(tmp_path: Path) -> None:
    # Outside pytest's folder, which no other user may enter.
    path = Path(f"/tmp/remote-train-test-{os.getpid()}.toml")
    code = (
        "import encodings.utf_8_sig, os, pathlib, sys; sys.path.insert(0, sys.argv[2]);"
        "from remote_train.config.toml_file import read_toml; os.seteuid(12345)\n"
        "try: print(read_toml(pathlib.Path(sys.argv[1]), private=True).data)\n"
        "except Exception as error: print(error)"
    )
    try:
        write_private(path, "default = []\n").chmod(0o644)
        command = [sys.executable, "-c", code, str(path), str(ROOT)]
        environ = {"HOME": str(tmp_path)}
        assert "{'default': []}" in subprocess.check_output(command, text=True, env=environ)
        path.chmod(0o600)
        assert "cannot be read: Permission denied" in subprocess.check_output(command, text=True, env=environ)
    finally:
        path.unlink()


def test_everything_that_is_allowed_arrives(path: Path) -> None:
    hosts = read_hosts(write_private(path, GOOD))
    assert hosts.path == path
    assert hosts.default == ("4070ti", "alias-box", "local", "me@10.0.0.1:2222")
    assert hosts.hosts["4070ti"] == HostSpec(
        name="4070ti",
        address=("192.168.1.36", "box.tailnet.ts.net", "[fd00::1]:2222", "fd00::2", "box.lan:2200"),
        user="me",
        port=2022,
        identity_file="~/.ssh/id_gpu",
        host_key="SHA256:4smxcQ3rBWm9hTQrMEFAHiM4ksV9QZpGfXKNMZ0G5qE",
        transport="openssh",
        python="~/miniconda3/envs/torch-2.4+cu/bin/python",
        state_dir="/data/state",
        device="cpu",
        env={"HF_HOME": "/data/hf"},
        data={"data/openwebtext": "/mnt/ssd/owt"},
        peak_tflops={"bf16": 80.2, "fp32": 40.0},
    )
    assert hosts.hosts["box.lan"] == HostSpec(
        name="box.lan", address=("box.lan",), python="~/venvs/t/bin/python"
    )


def test_of_this_machine_the_peak_can_be_stated(path: Path) -> None:
    hosts = read_hosts(write_private(path, "[hosts.local.peak_tflops]\nfp32 = 0.4\n"))
    local = HostSpec(name="local", device="cpu", peak_tflops={"fp32": 0.4})
    assert hosts.hosts == {"local": local}
    assert choose_host("local", hosts, ()) == local
    assert make_route(Request(local=True, hosts_file=path), path.parent, None)[0][0].host == local


@pytest.mark.parametrize("content", ["", "# nothing\n", "\ufeff", "default = []", "[hosts]\n[hosts.a]"])
def test_small_files_are_good(content: str, path: Path) -> None:
    assert read_hosts(write_private(path, content)).default == ()


def test_a_link_to_a_file_is_followed(path: Path) -> None:
    path.symlink_to(write_private(path.with_name("dotfiles.toml"), GOOD))
    assert "4070ti" in read_hosts(path).hosts


def test_the_example_loads() -> None:
    assert "4070ti" in read_hosts(EXAMPLE).hosts


def test_the_example_shows_every_key() -> None:
    text = EXAMPLE.read_text("utf-8")
    shown = [line.strip("# ").partition(" =")[0] for line in text.splitlines()]
    left_out = (
        HostSpec.__dataclass_fields__.keys() - {"name", "env", "data", "peak_tflops", "jumps"} - set(shown)
    )
    assert not left_out
    assert all(f"[hosts.4070ti.{table}]" in text for table in ("env", "data", "peak_tflops"))


def test_which_file(tmp_path: Path) -> None:
    environ = {"REMOTE_TRAIN_HOSTS": "/etc/x.toml"}
    assert hosts_path(tmp_path, environ) == tmp_path
    assert hosts_path(None, environ) == Path("/etc/x.toml")
    default = user_config_path("remote-train") / "hosts.toml"
    assert hosts_path(None, {}) == hosts_path(None, {"REMOTE_TRAIN_HOSTS": ""}) == default
    assert default.is_relative_to(tmp_path)


def test_a_missing_file_is_empty_only_at_its_default_place(tmp_path: Path) -> None:
    assert read_hosts(None, {}) == Hosts()
    with pytest.raises(ConfigError, match=r"no\.toml: does not exist"):
        read_hosts(tmp_path / "no.toml", {})
    with pytest.raises(ConfigError, match=r"no\.toml: does not exist"):
        read_hosts(None, {"REMOTE_TRAIN_HOSTS": str(tmp_path / "no.toml")})


def test_the_default_place_is_read(tmp_path: Path) -> None:
    place = hosts_path(None, {})
    assert place.is_relative_to(tmp_path)
    place.parent.mkdir(parents=True)
    write_private(place, GOOD)
    assert "4070ti" in read_hosts(None).hosts


@pytest.mark.parametrize("exists", [False, True])
def test_pydantic_is_paid_for_only_when_there_is_a_file(exists: bool, tmp_path: Path) -> None:
    if exists:
        write_private(tmp_path / "home" / "h.toml", "")
    code = (
        "import sys; from remote_train.config.hosts_file import read_hosts; from remote_train.config.project import read_project;"
        "import remote_train.config.hosts_file, remote_train.config.ssh_target, remote_train.config.hostnames, remote_train.config.families, pathlib;"
        "read_hosts(None); read_project(pathlib.Path(sys.argv[1]));"
        "print('pydantic' in sys.modules, 'paramiko' in sys.modules, 'typer' in sys.modules)"
    )
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "REMOTE_TRAIN_HOSTS": str(tmp_path / "home" / "h.toml") if exists else "",
    }
    output = subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True, env=environ)
    assert output.split() == [str(exists), "False", "False"]


PIECES = [
    *GOOD.splitlines(),
    *(
        "[",
        "]",
        "{",
        "}",
        '"',
        "'''",
        '"""',
        "=",
        ".",
        ",",
        "\n",
        "\x00",
        "\t",
        "-",
        "0",
        "[[hosts]]",
        "[hosts.a]",
    ),
    *(
        "true",
        "nan",
        "1e999",
        "1979-05-27",
        '"\\ud800"',
        '"\\u202e"',
        "é",
        "\ufeff",
        "user = []",
        "port = {}",
    ),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(GOOD)),
            st.integers(0, 12),
            st.one_of(st.sampled_from(PIECES), st.text(max_size=4)),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_mutated_file_is_read_or_refused(path: Path, edits: list[tuple[int, int, str]]) -> None:
    text = GOOD
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length :]
    write_private(path, text.encode("utf-8", "surrogatepass"))
    problems = read_problems(path)
    assert all(problem.startswith(str(path)) for problem in problems)


def read_problems(path: Path) -> list[str]:
    try:
        assert isinstance(read_hosts(path), Hosts)
    except ConfigError as error:
        return error.problems
    return []
