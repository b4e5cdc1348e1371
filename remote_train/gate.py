"""What a host may still say on one connection: answers to what was asked, DATA of streams that were opened, no more.

A host that says anything else ends the connection with a ProtocolError; so nothing it says can pile up here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from remote_train.answers import check_answer, check_end, check_event
from remote_train.errors import ProtocolError
from remote_train.host.credit import CEILING, HELD, RESERVE
from remote_train.refusals import make_fatal, make_refusal

ITEM_BYTES = 256
"""What keeping one frame costs beside its payload."""
HELD_BYTES = CEILING + CEILING // RESERVE + 2 * HELD + (8 << 20)
"""Our agent never has more on the way, and unread here of outputs and of files."""
HELD_EVENTS = 1000
HELD_CHECKPOINTS = 100
"""Told of one attempt and not heard yet, because the terminal is held up: each only says to look at the list again."""
DROPPED_CHECKPOINTS = 200_000
"""Of those that came beyond that, on one connection: two days of a training that saves every second. More is a flood."""
FETCHES = ("get", "burst")
"""Operations whose answer is followed by one stream, under the credit of files."""
BESIDE = ("prune", "state")
"""Operations that are asked beside a stream: a malformed answer is the asker's trouble, and the stream goes on."""


class Gate:
    """One connection's expectations; its session calls it under its lock."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._asked: dict[int, tuple[str, dict[str, Any]]] = {}
        self._streams: set[int] = set()
        self._files: set[int] = set()
        self._unwanted: set[int] = set()
        self._unopened: object = None
        self._followed: set[tuple[object, object]] = set()
        self._checkpoints: Counter[tuple[object, object]] = Counter()
        self._held = self._events = self._dropped = 0

    def ask(self, number: int, op: str, fields: dict[str, Any]) -> None:
        """Expect the answer to a request, and DATA and END of the streams that it names."""
        self._asked[number] = (op, fields)
        if op == "follow":
            self._followed.add((fields["run"], fields["attempt"]))
            self._streams.update(output["stream"] for output in fields["outputs"])
        elif op in FETCHES:
            self._streams.add(fields["stream"])
            self._files.add(fields["stream"])

    def is_file(self, stream: int) -> bool:
        """Tell a file's stream from an output's."""
        return stream in self._files

    def leave(self, stream: int) -> None:
        """Note that nobody wants what a stream still brings; all that it brought was taken or dropped."""
        if stream in self._streams:
            self._unwanted.add(stream)
        else:
            self._files.discard(stream)

    def is_unwanted(self, stream: int) -> bool:
        """Tell whether what a stream brings is dropped."""
        return stream in self._unwanted

    def close_stream(self, stream: int) -> None:
        """Note that a stream brings nothing more."""
        self._streams.discard(stream)
        if stream in self._unwanted:
            self._unwanted.discard(stream)
            self._files.discard(stream)

    def find_op(self, number: int) -> str:
        """Return what a request was for that has no answer yet."""
        return self._asked[number][0]

    def admit_reply(self, message: dict[str, Any]) -> tuple[int, dict[str, Any] | Exception] | None:
        """Return whose answer this is, and the answer or what it refuses with; None where nobody waits for it."""
        number = message["id"]
        # A bool is equal to the number of our first request, but none of ours.
        if type(number) is not int or number not in self._asked:
            raise ProtocolError(f"{self.host} answered what was not asked: id {str(number)[:40]}")
        op, fields = self._asked.pop(number)
        self._note_closed(op, fields, refused="error" in message)
        if op == "cancel":
            return None
        try:
            if "error" in message:
                error = message["error"]
                self._unopened = error if op == "open" else self._unopened
                # Requests travel behind `open`: where it was refused, so are they, with its words.
                of_open = error is not None and error == self._unopened
                return number, make_refusal(self.host, "open" if of_open else op, error)
            return number, check_answer(self.host, op, fields, message.get("ok"))
        except ProtocolError as error:
            if op in BESIDE:
                return number, error
            raise

    def _note_closed(self, op: str, fields: dict[str, Any], *, refused: bool) -> None:
        """Note which streams bring nothing more: those of what was refused, and one that was cancelled."""
        streams = [fields["stream"]] if (op in FETCHES if refused else op == "cancel") else []
        if refused and op == "follow":
            streams = [output["stream"] for output in fields["outputs"]]
        for stream in streams:
            self.close_stream(stream)

    def admit_data(self, stream: int, payload: bytes) -> None:
        """Take DATA of a stream that is open, as long as the host keeps to its credit."""
        if stream not in self._streams:
            raise ProtocolError(f"{self.host} sent data of stream {stream}, which is not open")
        self._held += len(payload) + ITEM_BYTES
        if self._held > HELD_BYTES:
            raise ProtocolError(f"{self.host} sent more than it may before we have read it")

    def admit_end(self, stream: int, summary: dict[str, Any]) -> None:
        """Take the one END of a stream."""
        if stream not in self._streams:
            raise ProtocolError(f"{self.host} ended stream {stream}, which is not open")
        self._streams.remove(stream)
        check_end(self.host, summary)

    def admit_event(self, message: dict[str, Any]) -> bool:
        """Take an event of an attempt that is followed; tell whether it is worth keeping."""
        if message.get("event") == "fatal":
            raise make_fatal(self.host, message)
        check_event(self.host, message)
        run, attempt = message.get("run"), message.get("attempt")
        if not isinstance(run, str) or type(attempt) is not int or (run, attempt) not in self._followed:
            raise ProtocolError(f"{self.host} told of `{message['event']}` of a run that is not followed")
        if message["event"] == "checkpoint":
            if self._checkpoints[run, attempt] >= HELD_CHECKPOINTS:
                self._dropped += 1
                self._check_flood()
                return False
            self._checkpoints[run, attempt] += 1
        self._events += 1
        self._check_flood()
        return True

    def _check_flood(self) -> None:
        if self._events > HELD_EVENTS or self._dropped > DROPPED_CHECKPOINTS:
            raise ProtocolError(f"{self.host} told of more than {HELD_EVENTS} events at once")

    def release_data(self, payload: bytes) -> None:
        """Note that DATA was taken over."""
        self._held -= len(payload) + ITEM_BYTES

    def release_event(self, message: dict[str, Any]) -> None:
        """Note that an event was taken over."""
        self._events -= 1
        if message["event"] == "checkpoint":
            self._checkpoints[message["run"], message["attempt"]] -= 1
