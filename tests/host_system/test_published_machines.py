"""Machines as people published them: each file of data/machines has the text, where it is from, and what the machine is."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.machine_texts import parse_machine

FOLDER = Path(__file__).parent / "data" / "machines"
FILES = sorted(FOLDER.glob("*.toml"))
CPU = ("model", "logical", "physical", "performance", "efficiency")


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text("utf-8"))


def test_there_are_enough_and_each_says_where_it_is_from() -> None:
    sources = [read(path)["source"] for path in FILES]

    assert len(FILES) >= 40
    assert all(source.startswith("https://") for source in sources)
    assert {"alder-lake-laptop-thinkpad-p1", "desktop-rtx-4070-ti"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_published_machine_is_told_truly(path: Path) -> None:
    case = read(path)
    expected, found = case["expect"], parse_machine(case["text"])

    wanted = [
        (row["vendor"], row.get("name"), row["kind"], row["mobile"]) for row in expected.get("adapters", [])
    ]
    assert [(row["vendor"], row["name"], row["kind"], row["mobile"]) for row in found["adapters"]] == wanted
    listed = [
        (row["name"], row["memory_bytes"] and row["memory_bytes"] >> 20, row["mobile"])
        for row in found["gpus"]
    ]
    assert listed == [
        (row["name"], row.get("memory_mib"), row.get("mobile")) for row in expected.get("gpus", [])
    ]
    cpu, said = expected.get("cpu"), found["cpu"]
    assert (cpu is None and said is None) or tuple(said[key] for key in CPU) == tuple(map(cpu.get, CPU))
    assert (found["driver"], found["wsl"], found["gpu_error"]) == (
        expected.get("driver"),
        expected.get("wsl", False),
        expected.get("gpu_error"),
    )
    if "note" in expected:
        assert [row["note"] for row in found["adapters"]] == [expected["note"]]


@given(st.text(alphabet=st.sampled_from("0123456789abcdef:.[]()| \n\tGPUMIGVMCoresNx,/"), max_size=300))
def test_no_text_raises(text: str) -> None:
    parse_machine("00:02.0 VGA compatible controller [0300]: " + text)
    parse_machine("CPU(s): " + text + "\nModel name: x\n" + text)
