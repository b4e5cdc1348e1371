"""What may reach a terminal. The oracle is pyte, a terminal that says what it was told to do."""

from __future__ import annotations

import itertools
import re
import time
import unicodedata
from typing import Any

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.show.neutral import LineCap, Neutraliser, neutral_text

UNTIMED = settings(deadline=None)  # speed is no test's business, and the machine may be busy


HARMLESS = {"draw", "linefeed", "carriage_return", "tab", "select_graphic_rendition"}
SGR = re.compile(r"\x1b\[[0-9;:]*m")
BIDI = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}

# What a terminal would obey, and whether pyte knows it (the control of the oracle).
HOSTILE = {
    "title": (b"\x1b]0;owned\x07", True),
    "title by C1 in UTF-8": (b"\xc2\x9d2;owned\xc2\x9c", True),
    "icon": (b"\x1b]1;owned\x1b\\", True),
    "clipboard": (b"\x1b]52;c;cm0gLXJmIH4K\x07", False),
    "link": (b"\x1b]8;;https://evil.invalid\x1b\\click\x1b]8;;\x1b\\", False),
    "DCS request": (b"\x1bP$qm\x1b\\", True),
    "APC": (b"\x1b_Gf=24;AAAA\x1b\\", True),
    "PM": (b"\x1b^text\x1b\\", True),
    "SOS": (b"\x1bXtext\x1b\\", True),
    "cursor home": (b"\x1b[H", True),
    "cursor up": (b"\x1b[3A", True),
    "clear": (b"\x1b[2J", True),
    "clear by C1": (b"\xc2\x9b2J", True),
    "clear by raw C1": (b"\x9b2J", False),
    "erase line": (b"\x1b[K", True),
    "alternate screen": (b"\x1b[?1049h", True),
    "hide cursor": (b"\x1b[?25l", True),
    "margins": (b"\x1b[2;3r", True),
    "status report": (b"\x1b[6n", True),
    "device attributes": (b"\x1b[c", True),
    "window report": (b"\x1b[21t", True),
    "modify keys": (b"\x1b[>4;2m", False),
    "reset": (b"\x1bc", True),
    "index": (b"\x1bD", True),
    "alignment": (b"\x1b#8", True),
    "charset": (b"\x1b(0", False),
    "tab stop": (b"\x1bH", True),
    "save": (b"\x1b7", True),
    "bell": (b"\x07", True),
    "backspace": (b"abc\b\b\bxyz", True),
    "form feed": (b"\x0c", False),
    "shift out": (b"\x0e", False),
    "delete": (b"\x7f", False),
    "nul": (b"\x00", False),
    "split by a colour": (b"\x1b\x1b[31m]0;owned\x07", True),
    "colour with a control inside": (b"\x1b[3\b1m", True),
    "bidi override": ("safe\u202egnp.exe".encode(), False),
    "bidi isolate": ("a\u2066b\u2069".encode(), False),
    "zero width": ("a\u200bb\ufeff".encode(), False),
    "line separator": ("a\u2028b\u2029".encode(), False),
}


class Recorder:
    """A terminal that does nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self.events.append(name)


class Answering(pyte.Screen):
    """A terminal that keeps what it would type back at the program."""

    replies = ""

    def write_process_input(self, data: str) -> None:
        self.replies += data


def neutralise(chunks: list[bytes]) -> bytes:
    neutraliser = Neutraliser()
    return b"".join(map(neutraliser.feed, chunks)) + neutraliser.flush()


def events(data: bytes) -> set[str]:
    recorder = Recorder()
    pyte.ByteStream(recorder).feed(data)
    return set(recorder.events)


def assert_harmless(shown: bytes) -> None:
    text = shown.decode("utf-8")  # strictly: what we write is always UTF-8
    # pyte takes `:` in a colour for its end; terminals do not
    assert events(SGR.sub(lambda match: match[0].replace(":", ";"), text).encode()) <= HARMLESS
    for character in SGR.sub("", text):
        assert character in "\n\t\r" or unicodedata.category(character) not in {"Cc", "Zl", "Zp", "Cs"}
        assert unicodedata.bidirectional(character) not in BIDI


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


PIECES = [piece for piece, _ in HOSTILE.values()] + [
    b"plain text\n",
    b"\x1b[31m",
    b"\x1b[38;2;1;2;3;48:2:4:5:6m",
    b"\x1b[0m",
    b"\x1b[",
    b"\x1b",
    b"m",
    b"0;",
    b"\r 50%|##",
    "żółw · 图 🐢".encode(),
    b"\xc3",
    b"\xe2\x82",
    b"\xed\xa0\x80",
    b"\xff",
]
STREAMS = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=12))).map(b"".join)


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_terminal_obeys_passes(name: str) -> None:
    raw, known = HOSTILE[name]
    assert (not events(raw) <= HARMLESS) == known  # the oracle sees the raw form for what it is
    assert_harmless(neutralise([b"before\n", raw, b"after\n"]))


@pytest.mark.parametrize("name", HOSTILE)
def test_title_modes_cursor_and_keyboard_stay_as_they_were(name: str) -> None:
    screen = Answering(80, 24)
    before = (
        set(screen.mode),
        screen.margins,
        set(screen.tabstops),
        screen.cursor.hidden,
        list(screen.savepoints),
    )
    pyte.ByteStream(screen).feed(neutralise([HOSTILE[name][0]]))
    after = (
        set(screen.mode),
        screen.margins,
        set(screen.tabstops),
        screen.cursor.hidden,
        list(screen.savepoints),
    )
    assert (screen.title, screen.icon_name, screen.replies) == ("", "", "")
    assert after == before
    assert (screen.cursor.x, screen.cursor.y) > (0, 0)  # something is shown in its place


@UNTIMED
@given(STREAMS)
def test_any_stream_is_harmless(data: bytes) -> None:
    assert_harmless(neutralise([data]))


@UNTIMED
@given(STREAMS, st.lists(st.integers(0, 10_000)))
def test_chunking_never_changes_the_result(data: bytes, places: list[int]) -> None:
    assert neutralise(cut(data, places)) == neutralise([data])
    assert neutralise([data[index : index + 1] for index in range(len(data))]) == neutralise([data])


@pytest.mark.parametrize("length", [63, 64, 65])
def test_the_longest_colour_may_be_cut_anywhere(length: int) -> None:
    data = b"\x1b[" + b"1" * length + b"m"
    for place in range(len(data) + 1):
        assert neutralise([data[:place], data[place:]]) == neutralise([data])
    assert (neutralise([data]) == data + b"\x1b[m") == (length <= 64)


@UNTIMED
@given(STREAMS)
def test_little_is_ever_held_back(data: bytes) -> None:
    neutraliser = Neutraliser()
    shown = neutraliser.feed(data + b"\x1b]0;" + b"x" * 10_000)
    assert shown.endswith(b"x" * 9_990)
    assert len(neutraliser.flush()) <= 100


@UNTIMED
@given(STREAMS)
def test_neutral_output_stays_as_it_is(data: bytes) -> None:
    shown = neutralise([data])
    again = Neutraliser()
    assert again.feed(shown) + again._held.encode() == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"a\tb\r\n", b"a\tb\r\n"),
        (b"\x1b[1;31mred\x1b[0m", b"\x1b[1;31mred\x1b[0m"),
        (b"\x1b[38:2::1:2:3mx\x1b[m", b"\x1b[38:2::1:2:3mx\x1b[m"),
        (b"\x1b]0;t\x07", rb"\x1b]0;t\x07"),
        (b"\x1b[2J", rb"\x1b[2J"),
        (b"\x1b", rb"\x1b"),
        (b"\x1b[3", rb"\x1b[3"),
        (b"\x1b[" + b"1;" * 33 + b"m", rb"\x1b[" + b"1;" * 33 + b"m"),
        (b"\x00\x7f\x08", rb"\x00\x7f\x08"),
        (b"\xff\xc3(", rb"\xff\xc3("),
        (b"\x9b31m", rb"\x9b31m"),
        ("\u009b31m".encode(), b"<U+009B>31m"),
        ("\u202etxt".encode(), b"<U+202E>txt"),
        ("ł 图 🐢".encode(), "ł 图 🐢".encode()),
    ],
)
def test_what_is_shown(raw: bytes, shown: bytes) -> None:
    assert neutralise([raw]) == shown


def test_a_character_cut_in_two_waits_for_its_rest() -> None:
    neutraliser = Neutraliser()
    assert neutraliser.feed(b"10 \xe2\x82") == b"10 "
    assert neutraliser.feed(b"\xac") == "€".encode()


def test_a_colour_cut_in_two_waits_for_its_rest() -> None:
    neutraliser = Neutraliser()
    assert neutraliser.feed(b"a\x1b[3") == b"a"
    assert neutraliser.feed(b"1mb") == b"\x1b[31mb"


@pytest.mark.parametrize(
    ("raw", "colours"),
    [
        (b"\x1b[31mred", b"\x1b[31m"),
        (b"\x1b[1m\x1b[31mred", b"\x1b[1m\x1b[31m"),
        (b"\x1b[1m\x1b[0;31mred", b"\x1b[0;31m"),
        (b"\x1b[38;5;0m", b"\x1b[38;5;0m"),  # black of 256, not a reset
        (b"\x1b[31mred\x1b[0m", b""),
        (b"\x1b[31mred\x1b[m", b""),
        (b"plain", b""),
    ],
)
def test_colours_left_on_are_known_and_taken_off_at_the_end(raw: bytes, colours: bytes) -> None:
    neutraliser = Neutraliser()
    neutraliser.feed(raw)
    assert neutraliser.colours == colours
    assert neutraliser.flush() == (b"\x1b[m" if colours else b"")
    assert neutraliser.colours == b""


def test_colours_remembered_are_few() -> None:
    neutraliser = Neutraliser()
    neutraliser.feed(b"\x1b[31m" * 100_000)
    assert len(neutraliser.colours) < 1000


def test_single_strings_keep_nothing() -> None:
    assert neutral_text("a\x1b[31mb\x1b[0m") == r"a\x1b[31mb\x1b[0m"
    assert neutral_text("one\ntwo\r\tthree") == r"one\ntwo\r\tthree"
    assert neutral_text("x\u202ey\u0085\udcff\ud800") == r"x<U+202E>y<U+0085>\xff<U+D800>"
    assert neutral_text("żółw 图.pt") == "żółw 图.pt"


@UNTIMED
@given(st.text(st.characters()))
def test_single_strings_are_one_line_that_can_be_encoded(text: str) -> None:
    shown = neutral_text(text)
    assert_harmless(shown.encode())
    assert len(shown.splitlines()) <= 1
    assert "\t" not in shown


def cap(chunks: list[bytes], limit: int) -> bytes:
    line_cap = LineCap(limit)
    return b"".join(map(line_cap.feed, chunks)) + line_cap.flush()


def test_a_line_of_100_mb_takes_16_kib_of_screen_and_its_size() -> None:
    line_cap = LineCap()
    shown = b"".join(line_cap.feed(b"x" * 1_000_000) for _ in range(100)) + line_cap.feed(b"\nnext\n")
    size = 100_000_000 - 16_384
    assert (
        shown.decode() == "x" * 16_384 + f"\x1b[m … {size:,} more bytes of this line are in the log\nnext\n"
    )


def test_the_cut_never_divides_a_character() -> None:
    assert cap(["ab€€€".encode()], 4).decode().startswith("ab€\x1b[m … 6 more")


def test_bars_never_run_into_the_limit() -> None:
    bars = b"\r 50%|#####" * 1000
    assert cap([bars], 16) == bars


@pytest.mark.parametrize(
    "data", [b"abcd" + b"\x80" * 9, b"abcdefg\x80\x80\n", "abc€€".encode(), b"abcd\n\x80"]
)
def test_the_cut_may_come_in_pieces(data: bytes) -> None:
    for place in range(len(data) + 1):
        assert cap([data[:place], data[place:]], 4) == cap([data], 4)


SHORT_AND_LONG = st.lists(
    st.sampled_from([b"a", b"bcdef", b"\n", b"\r", "€".encode(), b"\x80", b"x" * 30]), max_size=40
)


@UNTIMED
@given(SHORT_AND_LONG.map(b"".join), st.lists(st.integers(0, 10_000)), st.integers(1, 20))
def test_the_cap_does_not_depend_on_chunks(data: bytes, places: list[int], limit: int) -> None:
    assert cap(cut(data, places), limit) == cap([data], limit)


@UNTIMED
@given(SHORT_AND_LONG.map(b"".join), st.integers(1, 20))
def test_the_cap_cuts_only_long_lines_and_counts_the_rest(data: bytes, limit: int) -> None:
    for before, after in zip(
        re.split(rb"[\r\n]", data), re.split(rb"[\r\n]", cap([data], limit)), strict=True
    ):
        kept, _, note = after.partition(b"\x1b[m")
        left_out = int(note.split()[1]) if note else 0
        assert before.startswith(kept)
        assert len(kept) + left_out == len(before)
        assert len(kept) <= limit + 3
        assert not note or len(kept) >= limit


def test_speed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    line = b"iter 120: loss 2.3100, time 61.40ms, mfu 38.90%\n"
    kinds = {
        "plain": line,
        "UTF-8": "krok 120 · strata 2,31\n".encode(),
        "colour": b"\x1b[32mINFO\x1b[m " + line,
    }
    for name, one in kinds.items():
        data = one * (4_000_000 // len(one))
        begin = time.perf_counter()
        assert neutralise([data[at : at + 65_536] for at in range(0, len(data), 65_536)]) == data
        with capsys.disabled():
            print(f" neutral {name}: {len(data) / (time.perf_counter() - begin) / 1e6:.0f} MB/s", end="")
