"""The step at the time of saving, from a mirrored output and the host's clock beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.records import Attempt
from remote_train.saving import TICK, find_offset, parse_moment, read_step_at
from tests.host.account_kit import make_test_plan

if TYPE_CHECKING:
    from pathlib import Path

NOISE = (
    b'{"gap": {"reason": "ENOSPC"}}\n',
    b"\n",
    b"torn{\n",
    b'{"wall": "x"}\n',
    b"[" * 5000 + b"\n",
    b"\xff\n",
)


def entry(wall: float, size: int) -> bytes:
    return json.dumps({"mono": wall - 1000, "wall": wall, "sizes": {"0": size, "1": 0}}).encode() + b"\n"


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 40), st.sampled_from((b"", *NOISE))), max_size=20
    ),
    saved=st.integers(-10, 300),
)
def test_the_offset_is_that_of_the_last_entry_by_then(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bytes]], saved: int
) -> None:
    wall = size = 0
    expected = None
    data = b""
    for seconds, grown, noise in steps:
        wall, size = wall + seconds, size + grown
        data += noise + entry(float(wall), size)
        expected = size if wall <= saved + TICK else expected
    clock = tmp_path_factory.mktemp("clock") / "clock.jsonl"
    clock.write_bytes(data + b'{"wall": 1, "si')
    assert find_offset(clock, float(saved)) == expected


@pytest.mark.parametrize(
    "line", [*NOISE, b"", b'{"wall": NaN, "sizes": {"0": 1}}', b'{"wall": 1, "sizes": {"0": -1}}']
)
def test_what_is_no_moment(line: bytes) -> None:
    assert parse_moment(line) is None


def make_mirror(folder: Path, steps: int) -> Attempt:
    """Write an attempt that printed a step every ten seconds from 1000 s on, mirrored."""
    mirror = Attempt(folder)
    mirror.prepare()
    plan = make_test_plan("p", ("train.py",)).as_message()
    mirror.write("attempt.json", {"plan": plan, "started": 1000.0, "gpus": []})
    output, clock = b"", b""
    for step in range(steps):
        output += b"step %d/%d | loss %.4f | 10.0 ms\n" % (step, steps, 5 / (step + 1))
        clock += entry(1000.0 + 10 * step + 0.4, len(output))
    mirror.output("0").write_bytes(output)
    mirror.output("clock").write_bytes(clock)
    return mirror


@pytest.mark.parametrize("steps", [50, 5_000])
def test_the_last_step_that_was_printed_before_it_was_saved(tmp_path: Path, steps: int) -> None:
    mirror = make_mirror(tmp_path, steps)
    last = steps - 1
    for step in (0, 7, last // 2, last):
        for later in (0.1, 3.0, 9.0):
            assert read_step_at(1, mirror, 1000.0 + 10 * step + later) == step
    assert read_step_at(1, mirror, 1e9) == last
    assert read_step_at(1, mirror, 990.0) is None


def test_a_training_that_says_much_between_its_steps(tmp_path: Path) -> None:
    mirror = make_mirror(tmp_path, 3)
    output = mirror.output("0").read_bytes() + b"a word of the user\n" * 2000
    mirror.output("0").write_bytes(output)
    mirror.output("clock").write_bytes(entry(1000.0, len(output)))
    assert read_step_at(1, mirror, 1001.0) == 2


def test_a_line_that_was_not_whole_by_then_does_not_count(tmp_path: Path) -> None:
    mirror = make_mirror(tmp_path, 3)
    whole = mirror.output("0").read_bytes()
    mirror.output("clock").write_bytes(entry(1000.0, whole.index(b"step 2") + 6))
    assert read_step_at(1, mirror, 1001.0) == 1


def test_what_is_not_here_is_not_known(tmp_path: Path) -> None:
    assert read_step_at(1, Attempt(tmp_path / "none"), 1000.0) is None
    mirror = make_mirror(tmp_path, 3)
    mirror.output("0").unlink()
    assert read_step_at(1, mirror, 1e9) is None


@pytest.mark.parametrize("lines", [100, 20_000])
def test_the_last_step_that_was_reported_where_none_was_printed(tmp_path: Path, lines: int) -> None:
    mirror = make_mirror(tmp_path, 3)
    mirror.output("0").write_bytes(b"busy\n" * 100)
    report = [b'{"kind": "step", "time": %d, "step": %d, "loss": 1.0}\n' % (10 * n, n) for n in range(lines)]
    mirror.output("report").write_bytes(b"".join(report))
    for step in (lines - 90, lines - 1):
        assert read_step_at(1, mirror, 1000.0 + 10 * step + 4.0) == step
    assert read_step_at(1, mirror, 990.0) is None
