"""Output, talk and the status line on one terminal, on two streams, on pipes. The oracle for the terminal is pyte."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.show.screen import Screen

UNTIMED = settings(deadline=None)  # speed is no test's business, and the machine may be busy


class Log(io.RawIOBase):
    """A stream whose bytes are kept in order; two of them on one list are one terminal."""

    def __init__(self, writes: list[bytes]) -> None:
        super().__init__()
        self.writes = writes

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.writes.append(bytes(data))  # type: ignore[call-overload]
        return len(self.writes[-1])


@dataclass
class Desk:
    """A screen with its clock, and what came out."""

    terminal: bool = True
    talk_terminal: bool = True
    columns: int = 80
    colour: bool = False
    now: float = 0.0
    writes: list[bytes] = field(default_factory=list)
    talk: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        talk = self.writes if self.terminal and self.talk_terminal else self.talk
        self.stderr = io.TextIOWrapper(io.BufferedWriter(Log(talk)), encoding="utf-8")
        self.screen = Screen(
            io.BufferedWriter(Log(self.writes)),
            self.stderr,
            stdout_is_terminal=self.terminal,
            stderr_is_terminal=self.talk_terminal,
            width=lambda: self.columns,
            colour=self.colour,
            clock=lambda: self.now,
        )

    def lines(self, *, talk: bool = False) -> list[str]:
        """What a person sees."""
        return display(b"".join(self.talk if talk else self.writes), self.columns)


def display(data: bytes, columns: int = 80) -> list[str]:
    screen = pyte.Screen(columns, 60)
    screen.set_mode(pyte.modes.LNM)  # as the tty's driver does: a line feed also returns
    pyte.ByteStream(screen).feed(data)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


ANY = st.lists(st.binary(max_size=30))


@UNTIMED
@given(ANY)
def test_a_pipe_gets_the_exact_bytes(chunks: list[bytes]) -> None:
    desk = Desk(terminal=False)
    for chunk in chunks:
        desk.screen.status("step 1")
        desk.screen.output(chunk)
        desk.screen.say("something")
    desk.screen.close()
    assert b"".join(desk.writes) == b"".join(chunks)


def test_a_terminal_gets_colours_and_no_controls() -> None:
    desk = Desk()
    desk.screen.output(b"\x1b]0;owned\x07\x1b[31mred\x1b[0m\n")
    assert b"".join(desk.writes) == b"\\x1b]0;owned\\x07\x1b[31mred\x1b[0m\n"


def test_an_endless_line_is_cut_on_a_terminal_only() -> None:
    shown, piped = Desk(), Desk(terminal=False)
    for desk in (shown, piped):
        for _ in range(10):
            desk.screen.output(b"x" * 100_000)
        desk.screen.close()
    assert b"".join(piped.writes) == b"x" * 1_000_000
    assert (
        b"".join(shown.writes).decode().endswith("x\x1b[m … 983,616 more bytes of this line are in the log")
    )


def test_the_status_is_last_and_gone_after_the_end() -> None:
    desk = Desk()
    desk.screen.output(b"iter 1\n")
    desk.screen.status("step 1/9")
    assert desk.lines() == ["iter 1", "step 1/9"]
    desk.now += 1
    desk.screen.output(b"iter 2\n")
    assert desk.lines() == ["iter 1", "iter 2", "step 1/9"]
    desk.now += 1
    desk.screen.say("checkpoint pulled")
    assert desk.lines() == ["iter 1", "iter 2", "remote-train: checkpoint pulled", "step 1/9"]
    desk.screen.close()
    desk.screen.close()
    assert desk.lines() == ["iter 1", "iter 2", "remote-train: checkpoint pulled"]


def test_an_unfinished_line_is_not_torn_and_the_status_waits() -> None:
    desk = Desk()
    desk.screen.status("step 1")
    desk.now += 1
    desk.screen.output(b"compiling")
    desk.now += 1
    desk.screen.status("step 2")
    assert desk.lines() == ["compiling"]
    desk.screen.output(b" ... done\n")
    assert desk.lines() == ["compiling ... done", "step 2"]


@pytest.mark.parametrize("bar", [b"\r 10%|#         |", b" 10%|#         |\r"])
def test_a_bar_is_not_torn(bar: bytes) -> None:
    desk = Desk()
    desk.screen.status("step 1")
    for percent in (b"10", b"20", b"30"):
        desk.now += 1
        desk.screen.output(bar.replace(b"10", percent))
        desk.screen.status("step " + percent.decode())
    assert desk.lines() == [" 30%|#         |"]
    desk.screen.output(b"\n")
    assert desk.lines() == [" 30%|#         |", "step 30"]


def test_a_message_in_the_middle_of_a_line_stands_on_its_own() -> None:
    desk = Desk()
    desk.screen.output(b"\r 10%|#")
    desk.screen.warn("connection lost, trying again")
    desk.screen.output(b"\r 20%|##\n")
    assert desk.lines() == [" 10%|#", "remote-train: warning: connection lost, trying again", " 20%|##"]


def test_a_colour_after_the_line_end_is_still_the_start_of_a_line() -> None:
    desk = Desk()
    desk.screen.output(b"\x1b[32mgreen\n\x1b[0m")
    desk.screen.status("step 1")
    assert desk.lines() == ["green", "step 1"]


def test_a_colour_of_its_own_moves_no_cursor() -> None:
    desk = Desk()
    desk.screen.output(b"green\n")
    desk.screen.output(b"\x1b[0m")
    desk.screen.status("step 1")
    assert desk.lines() == ["green", "step 1"]
    desk.screen.output(b"half")
    desk.screen.output(b"\x1b[0m")
    desk.now += 1
    desk.screen.status("step 2")
    assert desk.lines() == ["green", "half"]


def test_after_a_message_the_status_has_its_place_again() -> None:
    desk = Desk()
    desk.screen.output(b"half")
    desk.screen.say("ours")
    desk.screen.status("step 1")
    assert desk.lines() == ["half", "remote-train: ours", "step 1"]


def test_colours_of_the_training_do_not_run_into_our_lines_and_go_on_after() -> None:
    desk = Desk()
    desk.screen.output(b"\x1b[31mred\n")
    desk.screen.say("ours")
    desk.screen.output(b"still red\n")
    desk.screen.close()
    screen = pyte.Screen(40, 5)
    screen.set_mode(pyte.modes.LNM)
    pyte.ByteStream(screen).feed(b"".join(desk.writes) + b"prompt")
    assert [screen.buffer[row][0].fg for row in range(4)] == ["red", "default", "red", "default"]


def test_ten_redraws_a_second_and_no_more() -> None:
    desk = Desk()
    for step in range(1000):
        desk.now = step / 1000
        desk.screen.status(f"step {step}")
    assert 9 <= b"".join(desk.writes).count(b"step") <= 10
    desk.now = 2
    desk.screen.tick()
    assert desk.lines() == ["step 999"]


def test_the_same_status_is_not_written_again() -> None:
    desk = Desk()
    desk.screen.status("step 1")
    count = len(desk.writes)
    for _ in range(5):
        desk.now += 1
        desk.screen.status("step 1")
    assert len(desk.writes) == count


@pytest.mark.parametrize("columns", [0, 1, 2, 12, 40])
def test_the_status_never_wraps(columns: int) -> None:
    desk = Desk(columns=columns)
    desk.screen.status("krok 图图图图 · " + "loss 2.31 " * 9)
    shown = b"".join(desk.writes).decode()
    assert sum(2 if character == "图" else 1 for character in shown) <= max(columns - 1, 0)
    assert columns < 5 or shown.endswith("…")


def test_a_status_from_a_host_obeys_nobody() -> None:
    desk = Desk()
    desk.screen.status("GPU \x1b[2J\nname")
    assert desk.lines() == [r"GPU \x1b[2J\nname"]


def test_without_a_terminal_there_is_no_status_and_no_control() -> None:
    desk = Desk(terminal=False, talk_terminal=False, colour=True)
    desk.screen.status("step 1")
    desk.screen.say("started")
    desk.screen.warn("slow link")
    desk.screen.error("host is full", hint="run `remote-train gc`")
    desk.screen.close()
    assert b"".join(desk.talk).decode() == (
        "remote-train: started\nremote-train: warning: slow link\n"
        "remote-train: error: host is full\n\nhint: run `remote-train gc`\n"
    )


def test_output_to_a_file_leaves_the_status_in_place() -> None:
    desk = Desk(terminal=False)
    desk.screen.status("step 1")
    desk.screen.output(b"unfinished")
    desk.now += 1
    desk.screen.status("step 2")
    assert desk.lines(talk=True) == ["step 2"]


def test_talk_to_a_file_does_not_touch_the_output() -> None:
    desk = Desk(talk_terminal=False)
    desk.screen.output(b"\x1b[31munfinished")
    desk.screen.say("ours")
    assert b"".join(desk.talk) == b"remote-train: ours\n"
    desk.screen.close()
    assert b"".join(desk.writes) == b"\x1b[31munfinished\x1b[m"


def test_a_message_of_a_host_cannot_pass_for_one_of_ours() -> None:
    desk = Desk()
    desk.screen.say("the host says:\nremote-train: all is well\x1b[A")
    assert desk.lines() == ["remote-train: the host says:", r"  remote-train: all is well\x1b[A"]


def test_colour_is_ours_to_add_only_when_allowed() -> None:
    coloured, plain = Desk(colour=True), Desk(colour=False)
    for desk in (coloured, plain):
        desk.screen.warn("careful")
        desk.screen.status("step 1")
    assert b"\x1b[33mwarning: \x1b[m" in b"".join(coloured.writes)
    assert b"\x1b[33m" not in b"".join(plain.writes)
    assert coloured.lines() == plain.lines()


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("output"), st.sampled_from([b"abc\n", b"part", b"\n", b"\r 5%", b"\x1b[31m", b"\x1b[0m"])
        ),
        st.tuples(st.just("say"), st.just("message")),
        st.tuples(st.just("status"), st.sampled_from(["STATUS 1", "STATUS 2", None])),
        st.tuples(st.just("sleep"), st.sampled_from([0.01, 0.2])),
    ),
    max_size=30,
)


@pytest.mark.slow
@UNTIMED
@given(ACTIONS)
def test_whatever_happens_the_status_leaves_no_trace(actions: list[tuple[str, object]]) -> None:
    with_status, without = Desk(), Desk()
    for name, value in actions:
        for desk in (with_status, without):
            if isinstance(value, float):
                desk.now += value
            elif name != "status" or desk is with_status:
                getattr(desk.screen, name)(value)
        assert sum("STATUS" in line for line in with_status.lines()) <= 1
        assert not any("STATUS" in line for line in with_status.lines()[:-1])
    with_status.screen.close()
    without.screen.close()
    assert with_status.lines() == without.lines()
