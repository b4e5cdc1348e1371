"""LineSplitter: the same lines whatever the chunking, cleaned, capped, and with their place in the raw stream."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.metrics.lines import LINE_CAP, Line, LineSplitter

NEEDLES = (b"loss", b"%|")


def split(chunks: list[bytes], needles: tuple[bytes, ...] = ()) -> list[Line]:
    splitter = LineSplitter(needles)
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return [*lines, *splitter.flush()]


def texts(data: bytes) -> list[str]:
    return [line.text for line in split([data])]


def chop(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def test_newlines_and_carriage_returns_both_end_a_line() -> None:
    assert texts(b"a\nb\rc\r\nd") == ["a", "b", "c", "d"]


def test_end_offsets_count_raw_bytes_behind_the_line_end() -> None:
    data = "ü\n\x1b[31mred\x1b[0m\r\nlast".encode()
    assert [(line.text, line.end) for line in split([data])] == [("ü", 3), ("red", 16), ("last", 21)]
    assert data[:16].endswith(b"\r")


def test_an_open_line_waits_for_its_end() -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(b"iter 1: lo")) == []
    assert [line.text for line in splitter.feed(b"ss 2\niter")] == ["iter 1: loss 2"]
    assert [line.text for line in splitter.flush()] == ["iter"]
    assert list(splitter.flush()) == []


@pytest.mark.parametrize(
    ("raw", "text", "rank"),
    [
        ("[default0]:iter 1", "iter 1", 0),
        ("[rank3]: iter 1", "iter 1", 3),
        ("\x1b[32m[rank12]:\x1b[0miter 1", "iter 1", 12),
        ("[7]: no role, no rank", "[7]: no role, no rank", None),
        ("[rank0] Step: 12", "[rank0] Step: 12", None),
    ],
)
def test_torchrun_prefixes_become_the_rank(raw: str, text: str, rank: int | None) -> None:
    assert [(line.text, line.rank) for line in split([raw.encode() + b"\n"])] == [(text, rank)]


@pytest.mark.parametrize(
    "escape",
    [
        "\x1b[0m",
        "\x1b[38;2;1;2;3m",
        "\x1b[2K",
        "\x1b[?25l",
        "\x1b]0;title\x07",
        "\x1b]8;;http://x\x1b\\",
        "\x1b(B",
        "\x1bM",
    ],
)
def test_escape_sequences_vanish(escape: str) -> None:
    assert texts(f"lo{escape}ss{escape}\n".encode()) == ["loss"]


def test_bytes_that_are_no_utf8_are_replaced_and_cut_characters_are_not() -> None:
    assert [line.text for line in split([b"\xe2\x96", b"\x88 50%\n\xff\n"])] == ["█ 50%", "\ufffd"]


def test_a_long_line_is_cut_at_the_cap_and_the_next_one_is_whole() -> None:
    lines = split([b"x" * (LINE_CAP + 5) + b"\nnext\n"])
    assert [(len(line.text), line.end) for line in lines] == [(LINE_CAP, LINE_CAP + 6), (4, LINE_CAP + 11)]


def test_a_hundred_megabyte_line_takes_no_memory() -> None:
    splitter, chunk = LineSplitter(NEEDLES), b"y" * (1 << 20)
    tracemalloc.start()
    for _ in range(100):
        assert list(splitter.feed(chunk)) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * LINE_CAP
    assert [line.text for line in splitter.feed(b"\nloss 1\n")] == ["loss 1"]


def test_needles_choose_lines_and_every_lets_all_through() -> None:
    splitter = LineSplitter(NEEDLES)
    lines = splitter.feed(b"a\nloss 1\nb\n 5%| |\nc\nd\n")
    seen = []
    for line in lines:
        seen.append(line.text)
        splitter.every = "%|" in line.text
    assert seen == ["loss 1", " 5%| |", "c"]


def test_a_needle_beyond_the_cap_does_not_count_in_any_chunking() -> None:
    data = b"z" * LINE_CAP + b"loss\nloss\n"
    assert [line.text for line in split([data], NEEDLES)] == ["loss"]
    assert split([data], NEEDLES) == split([data[:100], data[100:]], NEEDLES)


PIECES = [
    b"loss",
    b" 12%|",
    b"\n",
    b"\r",
    b"\r\n",
    b"\x1b[31m",
    "█".encode(),
    b"[rank1]:",
    b"x",
    b"\xff",
    b"y" * LINE_CAP,
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join),
    st.lists(st.integers(0, 1 << 20), max_size=12),
)
def test_chunking_changes_nothing(data: bytes, cuts: list[int]) -> None:
    for needles in ((), NEEDLES):
        assert split(chop(data, cuts), needles) == split([data], needles)


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join))
def test_needles_only_leave_out_lines_without_any(data: bytes) -> None:
    wanted = [line for line in split([data]) if "loss" in line.text or "%|" in line.text]
    assert split([data], NEEDLES) == wanted


def test_byte_by_byte_is_the_same_as_whole() -> None:
    data = b"[rank0]:iter 1: loss 2\r\n\x1b[1m5%|\x1b[0m\rtail loss"
    assert split([bytes([byte]) for byte in data], NEEDLES) == split([data], NEEDLES)


def test_needles_that_are_added_count_from_the_next_line_on_in_any_chunking() -> None:
    data = b"late 1\nfirst\nlate 2\nother\nlate 3\n"
    for piece in range(1, len(data) + 1):
        splitter, seen = LineSplitter([b"first"]), []
        for at in range(0, len(data), piece):
            for line in splitter.feed(data[at : at + piece]):
                seen.append(line.text)
                splitter.want([b"late", b"first"])
        assert seen == ["first", "late 2", "late 3"]
