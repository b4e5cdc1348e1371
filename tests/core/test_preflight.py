"""What is said of a host before anything is sent there: its driver against torch's CUDA, one line, and warnings."""

from __future__ import annotations

from typing import Any

import pytest

from remote_train.config.host_spec import HostSpec
from remote_train.findings import describe_gpu
from remote_train.preflight import find_driver_fault, find_unfit, find_warnings, render_verdict
from remote_train.show.tables import Look, render_checks


def make_facts(**changes: Any) -> dict[str, Any]:
    card = {"index": 0, "uuid": "GPU-1", "name": "NVIDIA GeForce RTX 4070 Ti", "processes": []}
    facts = {
        "python": {"path": "/p", "version": "3.11.4", "torch": "2.9.1+cu128", "torch_cuda": "12.8"},
        "driver": "570.86.15",
        "driver_cuda": "12.8",
        "gpus": [card],
        "cpu": {"model": "a CPU", "usable": 6},
        "disk_free_bytes": 83_200_000_000,
        "now": 1000.0,
    }
    return {**facts, **changes}


@pytest.mark.parametrize(
    ("built", "runs", "driver", "fit"),
    [
        ("12.8", "12.8", "570.86.15", True),
        ("12.8", "12.2", "535.54.03", True),  # minor versions of one major are compatible
        ("11.8", "13.0", "580.65.06", True),
        ("13.0", "12.8", "570.86.15", False),
        ("12.1", "11.4", "470.82.01", False),
        ("12.1", None, "525.60.13", True),
        ("12.1", None, "470.82.01", False),
        ("14.0", None, "580.65.06", True),  # nobody knows
        (None, "12.8", "570.86.15", True),
        ("12.8", None, None, True),
    ],
)
def test_a_driver_of_an_older_major_does_not_run_it(
    built: str | None, runs: str | None, driver: str | None, fit: bool
) -> None:
    facts = make_facts(driver=driver, driver_cuda=runs)
    facts["python"]["torch_cuda"] = built
    fault = find_driver_fault(facts)

    assert (fault is None) == fit
    if fault is not None and built is not None:
        assert f"built for CUDA {built}" in fault
        assert str(driver) in fault
        assert {"13.0": "driver 580 or newer", "12.1": "driver 525 or newer"}[built] in fault


@pytest.mark.parametrize(
    ("brings", "fit"),
    [
        ({}, False),
        ({"setup": ("module load cuda",)}, True),
        ({"env": {"LD_LIBRARY_PATH": "/usr/local/cuda/compat"}}, True),
    ],
)
def test_a_host_that_may_bring_newer_cuda_is_warned_of_and_not_refused(
    brings: dict[str, Any], fit: bool
) -> None:
    host, facts = HostSpec("box", device="cuda", **brings), make_facts(driver="535.54.03", driver_cuda="12.2")
    facts["python"] |= {"torch_cuda": "13.0"}

    assert (find_unfit(host, facts) is None) == fit
    assert any("driver 580 or newer" in line for line in find_warnings(host, facts, None)) == fit


def test_a_host_in_one_line() -> None:
    line = "box: Python 3.11, torch 2.9 (CUDA 12.8), driver 570 (CUDA 12.8), RTX 4070 Ti"

    assert render_verdict("box", "cuda", make_facts(), fresh=True) == f"{line} free, 83 GB free"
    assert render_verdict("box", "cuda", make_facts(), fresh=False) == line


def test_who_uses_the_cards() -> None:
    (free,) = make_facts()["gpus"]
    desktop = {**free, "processes": [{"pid": 1, "compute": False}]}
    used = {**free, "processes": [{"pid": 2, "compute": True}]}

    one = render_verdict("box", "cuda", make_facts(gpus=[used]), fresh=True)
    many = render_verdict("box", "cuda", make_facts(gpus=[free, desktop, used]), fresh=True)

    assert "RTX 4070 Ti in use" in one
    assert "3 x RTX 4070 Ti 2 free" in many


def test_free_is_what_the_queue_calls_free() -> None:
    """The line before a launch, `doctor` and `hosts check` say of a GPU what a start there would find."""
    gb = 10**9
    (card,) = make_facts()["gpus"]
    browser = {"pid": 1, "compute": True, "draws": True, "memory_bytes": gb // 3}
    player = {**card, "memory_bytes": 12 * gb, "memory_used_bytes": gb, "processes": [browser]}
    unseen = {**card, "memory_bytes": 12 * gb, "memory_used_bytes": 9 * gb, "processes": []}

    for gpu, words in ((player, "free"), (unseen, "in use")):
        facts = make_facts(gpus=[gpu])
        assert f"RTX 4070 Ti {words}," in render_verdict("box", "cuda", facts, fresh=True)
        assert words in describe_gpu(gpu, {}).rpartition(", ")[2]
        assert words in render_checks(
            [{"host": "box", "ok": True, "facts": facts}], Look(120, terminal=False, colour=False)
        )


def test_a_host_that_trains_on_its_cpu_says_so() -> None:
    facts = make_facts(gpus=[], driver=None, driver_cuda=None, disk_free_bytes=None)
    facts["python"] |= {"torch": "2.9.1", "torch_cuda": None}

    assert (
        render_verdict("box", "cpu", facts, fresh=True)
        == "box: Python 3.11, torch 2.9 (CPU), 6 cores of a CPU"
    )


@pytest.mark.parametrize(
    ("changes", "now", "words"),
    [
        ({}, 1000.0, []),
        ({"disk_free_bytes": 300_000_000}, 1000.0, ["box: 300 MB are free"]),
        ({}, 1119.0, []),
        ({}, 1600.0, ["box: its clock is 10 minutes behind"]),
        ({"now": 90_000.0}, 0.0, ["box: its clock is 25 hours ahead of"]),
        ({"now": None, "disk_free_bytes": None}, 0.0, []),
        ({}, None, []),
    ],
)
def test_what_is_warned_of(changes: dict[str, Any], now: float | None, words: list[str]) -> None:
    found = find_warnings(HostSpec("box"), make_facts(**changes), now)

    assert len(found) == len(words)
    assert all(text.startswith(start) for text, start in zip(found, words, strict=True))
