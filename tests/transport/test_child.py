"""A child as a channel: its last words are there when its output has ended."""

from __future__ import annotations

from remote_train.transport.local import LocalTransport


def test_words_that_come_after_the_end_of_the_output_are_waited_for() -> None:
    channel = LocalTransport().open("exec <&- >&-; sleep 0.2; echo 'no space' >&2; exec sleep 60 2>&-")
    while channel.receive(1.0) != b"":
        pass
    assert channel.stderr_tail() == b"no space\n"
    channel.close()
