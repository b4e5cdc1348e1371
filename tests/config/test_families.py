from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.config.families import Family, merge_device_args, parse_nanogpt, read_family

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """\
import os
import touched_by_execution
out_dir = 'out'
init_from = 'scratch' # 'scratch' or 'resume'
dataset = 'openwebtext'
device = 'cuda' # examples
dtype = 'bfloat16' if True else 'float16'
compile = True
config_keys = [k for k in globals()]
exec(open('configurator.py').read()) # overrides
dataset = 'after'
"""
CONFIG = """\
# dataset = 'commented'
out_dir = "out-shakespeare-char"
dataset = 'shakespeare_char' # trailing
open('executed', 'w').write('x')
def f():
    dataset = 'inner'
"""
WHOLE = Family(
    name="nanogpt",
    device_args={"cpu": ("--device=cpu", "--compile=False"), "cuda": ()},
    checkpoints=("out-shakespeare-char/ckpt.pt",),
    resume_args=("--init_from=resume",),
    include=("data/shakespeare_char/*.bin", "data/shakespeare_char/meta.pkl"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "char.py").write_text(CONFIG)
    return tmp_path


def test_a_script_and_its_config_are_understood_and_not_executed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert read_family(folder, "train.py", ["config/char.py", "--max_iters=2000"]) == WHOLE
    assert sorted(path.name for path in folder.iterdir()) == ["config", "train.py"]


def settings_of(*args: str, script: str = SCRIPT, **configs: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    family = parse_nanogpt(script, args, configs)
    return family.checkpoints, family.include[:1]


def test_without_arguments_the_scripts_own_settings_count() -> None:
    assert settings_of() == (("out/ckpt.pt",), ("data/openwebtext/*.bin",))


@pytest.mark.parametrize(
    ("args", "dataset"),
    [
        (["--dataset=a"], "a"),
        (["--dataset='a'"], "a"),
        (['--dataset="a b"'], "a b"),
        (["c", "--dataset=a"], "a"),
        (["--dataset=a", "c"], "from_c"),
        (["--dataset=a", "--dataset=b"], "b"),
        (["c", "d"], "from_d"),
        (["missing"], "openwebtext"),
        (["--dataset=a/b"], "a/b"),
        (["--dataset=x*[1]"], "x[*][[]1]"),
    ],
)
def test_the_last_word_counts_as_in_the_configurator(args: list[str], dataset: str) -> None:
    configs = {"c": "dataset = 'from_c'\n", "d": "dataset = 'from_d'\n"}
    assert parse_nanogpt(SCRIPT, args, configs).include == (
        f"data/{dataset}/*.bin",
        f"data/{dataset}/meta.pkl",
    )


@pytest.mark.parametrize("value", ["../x", "/etc", "a/../../b", ".", "", "a\nb", "\x1b[2J"])
def test_a_setting_that_leaves_the_project_is_not_followed(value: str) -> None:
    assert settings_of(f"--dataset={value}", f"--out_dir={value}") == (("out*/ckpt.pt",), ())


@pytest.mark.parametrize("value", ["name", "os.environ['X']", "1", "f'{x}'", "'a' + x", "(" * 500, "['a']"])
def test_a_config_value_that_is_no_plain_text_is_unknown(value: str) -> None:
    assert settings_of("c", c=f"dataset = {value}\nout_dir = {value}\n") == (("out*/ckpt.pt",), ())


def test_arguments_that_the_script_would_refuse_are_not_given() -> None:
    family = parse_nanogpt("device = 'x'\nexec(open('configurator.py').read())", [], {})
    assert family.device_args == {"cpu": ("--device=cpu",), "cuda": ()}
    assert (family.resume_args, family.include, family.checkpoints) == ((), (), ("out*/ckpt.pt",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "print('configurator.py')",
        "# exec(open('configurator.py').read())",
        '""">>> exec(open(\'configurator.py\').read())"""',
        "exec(open('other.py').read())",
        "import configurator",
    ],
)
def test_other_scripts_are_of_no_family(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(text)
    assert read_family(tmp_path, "train.py", []) is None


@pytest.mark.parametrize(
    "line",
    [
        'exec(open("configurator.py").read())',
        "  exec( open('./configurator.py', encoding='utf-8').read() )",
        "exec(open(os.path.join(HERE, 'configurator.py')).read())",
    ],
)
def test_the_family_is_known_by_its_configurator(line: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(f"x = 1\n{line}\n")
    family = read_family(tmp_path, "train.py", [])
    assert family is not None
    assert family.name == "nanogpt"


def test_scripts_that_cannot_be_read_are_of_no_family(folder: Path) -> None:
    os.mkfifo(folder / "fifo.py")
    (folder / "large.py").write_text(SCRIPT + "#" * 1_000_001)
    for name in ("missing.py", "config", "fifo.py", "large.py", "a\0b", "x" * 5000):
        assert read_family(folder, name, []) is None
    assert read_family(folder, "train.py", ["fifo.py", "large.py", "a\0b"]) is not None
    (folder / "latin.py").write_bytes(b"# \xff\n" + SCRIPT.encode())
    assert read_family(folder, "latin.py", []) is not None


# Device arguments

CPU = ("--device=cpu", "--compile=False")


@pytest.mark.parametrize(
    ("args", "device", "merged"),
    [
        ([], CPU, CPU),
        (["c.py", "--n=1"], CPU, ("c.py", "--n=1", *CPU)),
        (["--device=cuda"], CPU, ("--device=cuda", "--compile=False")),
        (["--device", "mps"], CPU, ("--device", "mps", "--compile=False")),
        (["--compile"], CPU, ("--compile", "--device=cpu")),
        (["--device_map=x"], CPU, ("--device_map=x", *CPU)),
        (["device=cuda"], CPU, ("device=cuda", *CPU)),
        (["--device=mps"], ("--device", "cpu", "--x"), ("--device=mps", "--x")),
        (["--lr=1"], ("--lr", "-1", "-v"), ("--lr=1", "-v")),
        ([], ("positional", "--x", "1"), ("positional", "--x", "1")),
        (["--x"], (), ("--x",)),
    ],
)
def test_device_arguments_come_last_unless_named(
    args: list[str], device: tuple[str, ...], merged: tuple[str, ...]
) -> None:
    assert merge_device_args(args, device) == merged


OPTIONS = st.lists(st.sampled_from(["--a=1", "--a", "--b=2", "--c=", "x", "--device=cuda"]), max_size=5)


@given(OPTIONS, st.lists(st.sampled_from(["--a=9", "--b=9", "--device=cpu"]), max_size=3, unique=True))
def test_what_the_user_typed_always_stays_first_and_wins(args: list[str], device: list[str]) -> None:
    merged = merge_device_args(args, device)
    added = merged[len(args) :]
    typed = {argument.partition("=")[0] for argument in args}
    assert list(merged[: len(args)]) == args
    assert [option for option in device if option.partition("=")[0] not in typed] == list(added)
