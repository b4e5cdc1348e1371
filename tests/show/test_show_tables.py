"""Tables, on a terminal (pyte reads them back) and as plain text."""

from __future__ import annotations

import pyte
import pytest

from remote_train.show.host_lists import render_hosts
from remote_train.show.tables import Look, render_checks, render_run, render_runs
from remote_train.show.words import measure_cells

PLAIN = Look(width=20, terminal=False, colour=True)  # neither counts without a terminal
HOSTILE = "[red]evil[/red] \x1b]0;owned\x07\x1b[31m\n\u202e[/]"
SHOWN = r"[red]evil[/red] \x1b]0;owned\x07\x1b[31m\n<U+202E>[/]"

RUNS: list[dict[str, object]] = [
    {
        "run": "shakespeare-0801-k3f9",
        "host": "4070ti",
        "state": "running",
        "step": 120,
        "steps": 2000,
        "loss": 2.31,
        "mfu": 0.389,
        "started": 1_750_000_000.0,
        "duration": 80.2,
        "exit": None,
    },
    {"run": "x-0801-aaaa", "host": "local", "state": "failed", "exit": 1},
]
RECORD: dict[str, object] = {
    "step": 120,
    "mfu": 0.389,
    "peak_flops": 80.2e12,
    "peak_source": "table: RTX 4070 Ti, bf16 dense",
    "reported_mfu": 0.1,
    "source": "log:nanogpt",
}
RUN: dict[str, object] = {
    "run": "shakespeare-0801-k3f9",
    "project": "shakespeare",
    "host": "4070ti",
    "state": "running",
    "attempts": 2,
    "script": "train.py config/train_shakespeare_char.py",
    "package": "ab12",
    "commit": "deadbeef",
    "dirty": True,
    "device": "NVIDIA GeForce RTX 4070 Ti",
    "last": RECORD,
    "steps": 2000,
    "eta": 80.0,
    "checkpoints": [
        {
            "path": "files/a.pt",
            "size": 128_000_000,
            "saved": 0.0,
            "step": 250,
            "contents": "model 10.7 M parameters",
        },
        {"path": "files/b.pt", "step": 90, "step_source": "metrics", "intact": False},
    ],
    "paths": {"here": "/p/runs/x", "host": None},
    "next": ["remote-train logs -f", "remote-train stop"],
}
CHECK: dict[str, object] = {
    "host": "4070ti",
    "ok": True,
    "address": "192.168.1.36",
    "reachable": "yes, in 12 ms",
    "login": True,
    "facts": {
        "python": {
            "path": "/usr/bin/python3",
            "version": "3.11.2",
            "torch": "2.13.0",
            "torch_cuda": "12.8",
            "error": None,
        },
        "gpus": [
            {
                "index": 0,
                "name": "NVIDIA GeForce RTX 4070 Ti",
                "memory_bytes": 12_900_000_000,
                "memory_used_bytes": 1_200_000_000,
                "processes": [
                    {"pid": 3, "compute": True, "memory_bytes": 800_000_000},
                    {"pid": 4, "compute": False, "memory_bytes": None},
                ],
            },
            {
                "index": 1,
                "name": "NVIDIA L4",
                "memory_bytes": 24e9,
                "memory_used_bytes": None,
                "processes": [],
            },
        ],
        "disk_free_bytes": 123e9,
        "gpu_error": None,
    },
    "verdict": "ready",
}


def display(text: str, width: int) -> list[str]:
    screen = pyte.Screen(width, 40)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(text)
    assert screen.title == ""
    return [line.rstrip() for line in screen.display if line.strip()]


def test_ps_as_plain_text_is_aligned_and_whole() -> None:
    header, *rows = render_runs(RUNS, PLAIN).splitlines()
    assert header.split() == ["RUN", "HOST", "STATE", "STEP", "LOSS", "MFU", "STARTED", "DURATION", "EXIT"]
    places = [header.index(name) for name in header.split()]
    ends = [*places[1:], 200]
    cells = [[row[start:end].strip() for start, end in zip(places, ends, strict=True)] for row in rows]
    assert cells[0][:6] == ["shakespeare-0801-k3f9", "4070ti", "running", "120/2000", "2.31", "38.9 %"]
    assert cells[0][7:] == ["1 min 20 s", "-"]
    assert cells[1] == ["x-0801-aaaa", "local", "failed", "-", "-", "-", "-", "-", "1"]


@pytest.mark.parametrize("width", [30, 50, 80, 120])
def test_ps_fits_the_terminal_and_keeps_its_names(width: int) -> None:
    text = render_runs(RUNS, Look(width, terminal=True, colour=False))
    assert all(measure_cells(line) <= width for line in text.splitlines())
    assert "shakespeare-0801-k3f9" in text
    assert ("STARTED" in text) == (width == 120)


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (200, set()),
        (80, {"STARTED"}),
        (79, {"STARTED", "EXIT"}),
        (60, {"STARTED", "EXIT", "LOSS", "DURATION"}),
    ],
)
def test_columns_are_left_out_rather_than_cut(width: int, left_out: set[str]) -> None:
    text = render_runs(RUNS, Look(width, terminal=True, colour=False))
    whole = set(render_runs(RUNS, PLAIN).splitlines()[0].split())
    assert set(text.splitlines()[0].split()) == whole - left_out
    assert "…" not in text


def test_no_rows_is_a_header() -> None:
    assert render_runs([], PLAIN).split()[0] == "RUN"
    assert render_checks([], PLAIN) == ""


def test_colours_only_where_allowed() -> None:
    on, off = (render_runs(RUNS, Look(120, terminal=True, colour=colour)) for colour in (True, False))
    assert "\x1b[32mrunning" in on
    assert "\x1b" not in off
    assert "\x1b" not in render_runs(RUNS, PLAIN)
    assert display(on, 120) == off.splitlines()


@pytest.mark.parametrize("name", ["NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"])
def test_the_environment_has_no_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(80, terminal=True, colour=True)
    before = render_runs(RUNS, look)
    monkeypatch.setenv(name, "dumb" if name == "TERM" else "10")
    assert render_runs(RUNS, look) == before


def test_each_attempt_has_a_line() -> None:
    rows = [
        {"attempt": 1, "host": "4070ti", "began": 1.0, "state": "lost", "exit": None, "superseded": True},
        {
            "attempt": 2,
            "host": "a\x1b[31m",
            "began": 2.0,
            "state": "ended",
            "exit": "0",
            "checkpoint": "out/c.pt",
        },
        {"attempt": 3, "host": "b", "state": "running", "checkpoint": None, "pending": True},
    ]
    rows[1]["step"] = 40
    lines = render_run({**RUN, "attempts": rows}, PLAIN).splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("attempts"))
    first, second, third = [line[13:] for line in lines[place : place + 3]]
    assert first.startswith("1  4070ti")
    assert first.endswith("lost; does not count any more")
    assert second.endswith(
        "ended: 0                                             from out/c.pt, about step 40"
    )
    assert "\x1b" not in second
    assert "does not count any more; the first contact stops it  began anew" in third


def test_show_says_everything_once() -> None:
    lines = render_run(RUN, PLAIN).splitlines()
    assert lines[0] == "run          shakespeare-0801-k3f9"
    assert "commit       deadbeef, with uncommitted changes" in lines
    assert "peak         80.2 TFLOP/s (table: RTX 4070 Ti, bf16 dense)" in lines
    assert any("step 120/2000" in line and "ETA 1 min 20 s" in line for line in lines)
    assert "reported     script says 10.0 % (of an A100's 312 TFLOP/s)" in lines
    first = next(
        place for place, line in enumerate(lines) if line.startswith("checkpoints  files/a.pt, 128 MB, ")
    )
    assert lines[first].endswith(", step 250: model 10.7 M parameters")
    assert lines[first + 1].strip() == "files/b.pt, step 90 by the output, changed here since it was pulled"
    assert "paths        here: /p/runs/x" in lines
    assert lines[-2:] == ["next         remote-train logs -f", "             remote-train stop"]


def test_show_leaves_out_what_is_unknown() -> None:
    assert render_run({"run": "a", "last": None, "paths": None}, PLAIN) == "run  a\n"


def test_show_on_a_narrow_terminal_folds_and_loses_nothing() -> None:
    text = render_run(
        {"run": "r", "paths": {"here": "/" + "long/" * 30}}, Look(40, terminal=True, colour=True)
    )
    lines = display(text, 40)
    assert all(len(line) <= 40 for line in lines)
    assert "/" + "long/" * 30 in "".join(line[7:] for line in lines[1:]).replace(" ", "")


PIN = "SHA256:4smxcQ3r…"


def test_hosts_list() -> None:
    rows: list[dict[str, object]] = [
        {
            "name": "4070ti",
            "address": ["192.168.1.36", "box"],
            "user": "me",
            "device": "cuda",
            "default": True,
            "pin": "SHA256:4smxcQ3rBWm9hTQrMEFAHiM4ksV9QZpGfXKNMZ0G5qE",
        },
        {"name": "local"},
    ]
    lines = render_hosts(rows, PLAIN).splitlines()
    headers = "HOST ADDRESS USER JUMP TRANSPORT PIN DEVICE SOURCE DEFAULT"
    assert lines[0].split() == headers.split()
    assert lines[1].split() == ["4070ti", "192.168.1.36,", "box", "me", "-", "-", PIN, "cuda", "-", "yes"]
    assert lines[2].split() == ["local", "-", "-", "-", "-", "-", "-", "-"]


def test_hosts_check_names_who_uses_each_card() -> None:
    assert render_checks([CHECK], PLAIN).splitlines() == [
        "host       4070ti",
        "address    192.168.1.36",
        "reachable  yes, in 12 ms",
        "login      yes",
        "python     /usr/bin/python3 3.11.2, torch 2.13.0 (CUDA 12.8)",
        "gpus       0: NVIDIA GeForce RTX 4070 Ti, 12.9 GB, 1.20 GB in use, used by pid 3 (800 MB)",
        "           1: NVIDIA L4, 24.0 GB, free",
        "disk       123 GB free",
        "verdict    ready",
    ]


def test_hosts_check_of_hosts_that_fail() -> None:
    unreachable: dict[str, object] = {
        "host": "a",
        "reachable": "no: connection refused",
        "verdict": "unreachable",
        "next": "start sshd there",
    }
    unfit: dict[str, object] = {
        "host": "b",
        "facts": {"python": {"path": "python3", "error": "not found"}, "gpu_error": "driver: no NVML"},
        "verdict": "unfit",
    }
    text = render_checks([unreachable, unfit], PLAIN)
    assert "next       start sshd there\n\nhost       b\n" in text
    assert "python     python3: not found\n" in text
    assert "gpu error  driver: no NVML\n" in text


@pytest.mark.parametrize("look", [PLAIN, Look(200, terminal=True, colour=True)])
def test_what_a_host_provides_is_neither_obeyed_nor_read_as_markup(look: Look) -> None:
    gpu: dict[str, object] = {"index": 0, "name": HOSTILE, "processes": [{"pid": HOSTILE, "compute": True}]}
    host: dict[str, object] = {"name": HOSTILE, "address": [HOSTILE]}
    texts = [
        render_runs([{"run": HOSTILE, "host": HOSTILE, "state": HOSTILE, "exit": HOSTILE}], look),
        render_run(
            {"run": HOSTILE, "paths": {HOSTILE: HOSTILE}, "last": {"peak_source": HOSTILE, "mfu": 1}}, look
        ),
        render_hosts([host], look),
        render_checks([{"host": HOSTILE, "facts": {"gpus": [gpu], "python": {"error": HOSTILE}}}], look),
    ]
    for text in texts:
        assert SHOWN in "\n".join(display(text, 1000))
        assert "\x1b]" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
