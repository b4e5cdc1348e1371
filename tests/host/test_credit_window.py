"""The credit window on simulated links: a queue that drains at a rate, and a delay each way. No clock, no sockets."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.host.credit import CEILING, FLOOR, PROBE, Credit
from remote_train.host.wire import CHUNK

MB = 1e6


@dataclass
class Link:
    """A bottleneck of `rate` bytes a second, `delay` seconds each way, and a laptop that keeps up and acknowledges."""

    rate: float
    delay: float
    credit: Credit = field(default_factory=Credit)
    now: float = 0.0
    free_at: float = 0.0
    sent: int = 0
    consumed: int = 0
    events: list[tuple[float, int]] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)

    def send_bulk(self) -> None:
        """Send as much as the credit allows, in frames as the agent makes them."""
        while (room := self.credit.room()) > 0:
            size = min(room, CHUNK)
            self.credit.sent(size, self.now)
            self.sent += size
            self.free_at = max(self.free_at, self.now) + size / self.rate
            heapq.heappush(self.events, (self.free_at + 2 * self.delay, self.sent))
        self.waits.append((self.now, max(0.0, self.free_at - self.now)))

    def run(self, seconds: float) -> None:
        """Play bulk for so long; `waits` holds what a control frame would have waited, by time."""
        end = self.now + seconds
        self.send_bulk()
        while self.events and self.events[0][0] <= end:
            self.now, total = heapq.heappop(self.events)
            self.consumed = total
            self.credit.acked(total, self.now)
            self.send_bulk()
        self.now = end

    def throughput(self, since: float, consumed_before: int) -> float:
        return (self.consumed - consumed_before) / (self.now - since)


@pytest.mark.parametrize(
    ("rate", "delay"), [(1, 0.05), (1, 0.001), (2, 0.1), (10, 0.05), (50, 0.01), (500, 0.05)]
)
def test_no_frame_waits_half_a_second_behind_bulk(rate: float, delay: float) -> None:
    """For a minute: what is remembered of the link is forgotten and measured anew many times."""
    link = Link(rate * MB, delay)
    link.run(60.0)
    longest = max(wait for _, wait in link.waits)
    assert longest <= 0.5, f"{longest:.2f} s"


@pytest.mark.parametrize(("rate", "delay"), [(1, 0.05), (10, 0.05), (100, 0.05), (500, 0.05), (500, 0.0005)])
def test_a_link_is_filled(rate: float, delay: float) -> None:
    link = Link(rate * MB, delay)
    link.run(2.0)
    before = link.consumed
    link.run(60.0)
    assert link.throughput(2.0, before) >= 0.9 * rate * MB


def test_a_fast_long_link_is_filled_within_a_few_round_trips() -> None:
    link = Link(500 * MB, 0.05)
    link.run(1.2)
    before, since = link.consumed, link.now
    link.run(0.5)
    assert link.throughput(since, before) >= 0.8 * 500 * MB


def test_a_link_that_becomes_slow_is_followed() -> None:
    link = Link(100 * MB, 0.05)
    link.run(5.0)
    link.rate = 2 * MB
    link.run(60.0)
    late = [wait for at, wait in link.waits if at > 30.0]  # what was on its way takes 18 s at the new rate
    assert max(late) <= 0.5


def test_a_route_that_becomes_longer_is_filled_again() -> None:
    link = Link(50 * MB, 0.005)
    link.run(5.0)
    link.delay = 0.2
    link.run(40.0)
    before, since = link.consumed, link.now
    link.run(20.0)
    assert link.throughput(since, before) >= 0.7 * 50 * MB


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, CHUNK)), max_size=60))
def test_no_acknowledgement_opens_the_window_for_bytes_never_sent(steps: list[tuple[int, int]]) -> None:
    """A lying laptop: totals from anywhere, out of order."""
    credit = Credit()
    sent = acked = 0
    for number, (total, size) in enumerate(steps):
        if credit.room() >= size:
            credit.sent(size, number * 0.01)
            sent += size
        credit.acked(total, number * 0.01 + 0.005)
        if acked <= total <= sent:
            acked = total
        assert sent - acked <= CEILING
        assert 0 <= credit.room() <= CEILING
        assert credit._acked == acked


def test_lies_change_nothing() -> None:
    credit = Credit()
    credit.sent(PROBE, 0.0)
    for lie in (PROBE + 1, 2**60, -1):
        credit.acked(lie, 0.1)
    assert credit.room() == 0
    credit.acked(PROBE, 0.2)
    assert credit.room() == FLOOR


def test_the_first_bytes_measure_the_round_trip() -> None:
    credit = Credit()
    assert credit.room() == PROBE
    credit.sent(PROBE, 0.0)
    assert credit.room() == 0
