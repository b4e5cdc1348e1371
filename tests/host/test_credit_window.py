"""The credit on simulated links: a bottleneck, a delay each way with jitter, acknowledgements 5 ms apart. No clock, no sockets."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from remote_train.host.credit import CEILING, FIRST_WINDOW, HELD, RESERVE, Credit
from remote_train.host.wire import CHUNK

KB, MB, GB = 1e3, 1e6, 1e9
ACK_SECONDS = 0.005
TURN_SECONDS = 0.005
ARRIVAL, ACK, ACKED, TURN = range(4)


@dataclass
class Link:
    """A bottleneck of `rate` bytes a second, `delay` seconds each way and up to `jitter` more, in order; a laptop that keeps up."""

    rate: float
    delay: float
    jitter: float = 0.0
    seed: int = 0
    credit: Credit = field(default_factory=Credit)
    now: float = 0.0
    free_at: float = 0.0
    sent: int = 0
    arrived: int = 0
    consuming: bool = True
    consumed: int = 0
    last_ack: float = -1.0
    latest: list[float] = field(default_factory=lambda: [0.0, 0.0])
    events: list[tuple[float, int, int]] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def cross(self, since: float, way: int) -> float:
        """When what leaves the bottleneck then is at the other end: nothing overtakes."""
        self.latest[way] = max(self.latest[way], since + self.delay + self.chance.uniform(0, self.jitter))
        return self.latest[way]

    def send_bulk(self) -> None:
        """Send as much as the credit allows, in frames as the agent makes them."""
        while (room := self.credit.room(bulk=True, now=self.now)) > 0:
            size = min(room, CHUNK, self.credit.longest())
            self.credit.sent(size, bulk=True, now=self.now)
            self.sent += size
            self.free_at = max(self.free_at, self.now) + size / self.rate
            heapq.heappush(self.events, (self.cross(self.free_at, 0), ARRIVAL, self.sent))
        self.waits.append((self.now, max(0.0, self.free_at - self.now)))
        if self.credit.is_paced(self.now):
            heapq.heappush(self.events, (self.now + TURN_SECONDS, TURN, 0))

    def run(self, seconds: float) -> None:
        """Play bulk for so long; `waits` holds what a control frame would have waited, by time."""
        end = self.now + seconds
        self.send_bulk()
        while self.events and self.events[0][0] <= end:
            self.now, kind, total = heapq.heappop(self.events)
            if kind == ARRIVAL:
                self.arrived = total
                self.consumed = total if self.consuming else self.consumed
                if self.last_ack <= self.now:
                    self.last_ack = max(self.now, self.last_ack + ACK_SECONDS)
                    heapq.heappush(self.events, (self.last_ack, ACK, 0))
            elif kind == ACK:
                heapq.heappush(self.events, (self.cross(self.now, 1), ACKED, self.arrived))
            else:
                if kind == ACKED:
                    self.credit.acked(total, [0, min(total, self.consumed)], self.now)
                self.send_bulk()
        self.now = end

    def stall(self, seconds: float) -> None:
        """Carry nothing for so long, in either direction."""
        self.now += seconds
        self.free_at = max(self.free_at, self.now)
        self.events = [(max(at, self.now), kind, total) for at, kind, total in self.events]
        heapq.heapify(self.events)

    def start(self) -> None:
        """Let the start pass: twenty round trips and two seconds."""
        self.run(2.0 + 40 * self.delay)
        self.waits.clear()

    def fill(self, seconds: float) -> float:
        """Return how much of what the link could carry it carries."""
        before = self.arrived
        self.run(seconds)
        most = min(self.rate, CEILING / (2 * (self.delay + self.jitter) + 1e-3))
        return (self.arrived - before) / seconds / most

    def longest_wait(self) -> float:
        return max(wait for _, wait in self.waits)


RATES = st.floats(4.8, 9.0).map(lambda power: 10**power)  # 64 KB/s to 1 GB/s
DELAYS = st.floats(0.0, 0.25)
JITTERS = st.floats(0.0, 0.01)


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(RATES, DELAYS, JITTERS, st.integers(0, 2**32))
@example(64 * KB, 0.25, 0.0, 0)
@example(64 * KB, 0.0, 0.01, 0)
@example(1 * MB, 0.25, 0.01, 0)
@example(30 * MB, 0.1, 0.01, 0)
@example(1 * GB, 0.0, 0.0, 0)
def test_any_link_is_filled_and_no_frame_waits_long(
    rate: float, delay: float, jitter: float, seed: int
) -> None:
    """Half a minute on slow links, so that the round trip is measured anew; few bytes have to make up a fast link."""
    link = Link(rate, delay, jitter if rate <= 100 * MB else 0.0, seed)
    link.start()
    fill = link.fill(30.0 if rate < 100 * MB else 10.0)
    assert link.longest_wait() <= 0.35, f"{link.longest_wait():.3f} s, filled {fill:.3f}"
    # Beyond what the channel takes at once a link of a long round trip is not filled at all; near it the start takes longer.
    if rate * 2 * delay < CEILING / 4:
        assert fill >= 0.9, f"{fill:.3f}"


@pytest.mark.parametrize("rate", [64 * KB, 256 * KB, 1 * MB, 10 * MB, 100 * MB])
@pytest.mark.parametrize("trip", [0.0, 0.01, 0.1, 0.2])
def test_the_start_makes_no_long_queue_either(rate: float, trip: float) -> None:
    """It may be one round trip longer: the window doubles with each until the rate has stopped growing."""
    link = Link(rate, trip / 2)
    link.run(2.0 + 20 * trip)
    assert link.longest_wait() <= 0.35 + trip


@pytest.mark.parametrize(
    ("rate", "trip", "seconds"), [(350 * MB, 0.1, 1.2), (10 * MB, 0.1, 1.2), (1 * GB, 0.001, 0.2)]
)
def test_a_fast_link_is_filled_within_a_few_round_trips(rate: float, trip: float, seconds: float) -> None:
    link = Link(rate, trip / 2)
    link.run(seconds)
    assert link.fill(0.5) >= 0.9


@pytest.mark.parametrize("rate", [64 * KB, 1 * MB, 20 * MB])
def test_a_frame_of_bulk_takes_a_moment_on_the_link(rate: float) -> None:
    link = Link(rate, 0.02)
    link.start()
    assert link.credit.longest() <= min(CHUNK, 0.1 * rate)


@pytest.mark.parametrize("rate", [64 * KB, 1 * MB, 20 * MB])
def test_who_is_slow_with_a_file_stops_no_output(rate: float) -> None:
    """The laptop takes nothing of the file any more: bulk stops, and an output goes on as if it were alone."""
    link = Link(rate, 0.02)
    link.start()
    link.consuming = False
    link.run(3.0 + 2 * HELD / rate)
    before = link.arrived
    link.run(5.0)
    assert link.arrived == before
    assert link.arrived - link.consumed <= HELD + 0.5 * rate
    credit = link.credit
    assert credit.room(bulk=True, now=link.now) == 0
    assert credit.room(bulk=False, now=link.now) >= 0.1 * rate
    link.consuming = True
    link.consumed = link.arrived
    credit.acked(link.arrived, [0, link.consumed], link.now)
    assert link.fill(5.0) >= 0.9


def test_bulk_leaves_a_part_of_the_window_to_outputs() -> None:
    link = Link(1 * MB, 0.05)
    link.start()
    assert link.credit.room(bulk=True, now=link.now) == 0
    assert link.credit.room(bulk=False, now=link.now) >= 0.2 * MB / RESERVE


def test_a_log_that_says_little_shrinks_nothing() -> None:
    """A line a second for a minute is what was written, not what the link carries."""
    link = Link(50 * MB, 0.05)
    link.start()
    known = link.credit.room(bulk=False, now=link.now + 60) + link.sent - link.arrived
    link.run(0.0)
    link.events.clear()
    link.credit.acked(link.sent, [0, link.sent], link.now)
    for _ in range(60):
        link.now += 1.0
        link.credit.starve(link.now)
        link.credit.sent(100, bulk=False, now=link.now)
        link.sent += 100
        link.now += 0.1
        link.credit.acked(link.sent, [0, link.sent], link.now)
    assert link.credit.room(bulk=False, now=link.now) >= 0.5 * known


def test_a_log_alone_is_held_back_by_nothing_it_has_not_filled() -> None:
    """A line now and then, one of them late by a busy machine, and then much at once: nobody knows the link to be slow."""
    credit, now, sent = Credit(), 0.0, 0
    for number in range(50):
        credit.starve(now)
        credit.sent(100, bulk=False, now=now)
        sent += 100
        now += 0.5 if number == 30 else 0.05
        credit.acked(sent, [sent, 0], now)
        now += 0.1
    assert credit.room(bulk=False, now=now) >= FIRST_WINDOW


def test_a_link_that_becomes_slow_is_followed() -> None:
    link = Link(100 * MB, 0.05)
    link.run(5.0)
    link.rate = 2 * MB
    link.run(60.0)
    late = [wait for at, wait in link.waits if at > 30.0]  # what was on its way takes 15 s at the new rate
    assert max(late) <= 0.35


def test_a_link_that_becomes_fast_is_filled_again() -> None:
    link = Link(1 * MB, 0.05)
    link.run(8.0)
    link.rate = 50 * MB
    link.run(5.0)
    assert link.fill(5.0) >= 0.9


@pytest.mark.parametrize(("rate", "trip"), [(8 * KB, 0.6), (20 * KB, 0.6), (40 * KB, 0.3), (1 * MB, 0.1)])
@pytest.mark.parametrize("seconds", [10.0, 13.0])
def test_a_link_that_stood_still_is_filled_again(rate: float, trip: float, seconds: float) -> None:
    link = Link(rate, trip / 2)
    link.run(60.0)
    link.stall(seconds)
    link.run(30.0)
    assert link.fill(60.0) >= 0.5


def test_a_route_that_becomes_longer_is_filled_again() -> None:
    link = Link(50 * MB, 0.005)
    link.run(5.0)
    link.delay = 0.2
    link.run(40.0)
    assert link.fill(20.0) >= 0.9


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, CHUNK)), max_size=60))
def test_no_acknowledgement_opens_the_window_for_bytes_never_sent(steps: list[tuple[int, int, int]]) -> None:
    """A lying laptop: totals from anywhere, out of order."""
    credit = Credit()
    sent = acked = 0
    for number, (total, consumed, size) in enumerate(steps):
        if credit.room(bulk=True, now=number * 0.01) >= size:
            credit.sent(size, bulk=True, now=number * 0.01)
            sent += size
        credit.acked(total, [consumed, consumed], number * 0.01 + 0.005)
        if acked <= total <= sent:
            acked = total
        assert sent - acked <= CEILING
        assert 0 <= credit.room(bulk=True, now=number * 0.01 + 0.005) <= CEILING
        assert credit._acked == acked


def test_lies_change_nothing() -> None:
    credit = Credit()
    credit.sent(FIRST_WINDOW, bulk=True, now=0.0)
    for lie in (FIRST_WINDOW + 1, 2**60, -1):
        credit.acked(lie, [lie, lie], 0.1)
    assert credit.room(bulk=True, now=0.1) == 0
    credit.acked(FIRST_WINDOW, [0, 0], 0.2)
    assert credit.room(bulk=True, now=0.2) >= FIRST_WINDOW
