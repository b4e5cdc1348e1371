"""The mean of steps that are not alike, against figures worked out by hand."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from remote_train.host.meter import schedule  # noqa: E402  (torch may not be there)
from remote_train.host.meter import tally as tallying  # noqa: E402
from remote_train.host.meter.calls import Call, describe_call  # noqa: E402
from remote_train.host.meter.counting import Count  # noqa: E402
from remote_train.host.meter.estimate import estimate_flops  # noqa: E402
from remote_train.host.meter.tally import Tally, interpolate  # noqa: E402
from tests.meter.counted_calls import is_forgotten  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    Ended = Callable[[], list[dict[str, Any]]]

pytestmark = pytest.mark.torch

PATIENT = 60.0


def pick(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def describe(module: Any, *shape: int, **kwargs: Any) -> Call:
    return describe_call(torch, module, (torch.ones(shape),), kwargs)


def product(samples: int, length: int = 1, width: int = 8) -> float:
    """Forward and the weights' gradient of a square layer whose input needs none."""
    return 2.0 * 2 * samples * length * width * width


def test_sequences_of_the_same_batch_are_told_apart_by_their_length() -> None:
    layer, tally = torch.nn.Linear(8, 8), Tally()
    for length in (4, 100):
        tally.add([describe(layer, 8, length, 8)], 1, 1)
    tally.count(torch, PATIENT)
    tally.add([describe(layer, 8, 52, 8)], 1, 1)
    tally.add([describe(layer, 8, 200, 8)], 1, 1)
    assert tally.mean()["flops"] == sum(product(8, length) for length in (4, 100, 52, 200)) / 4


def test_several_values_known_of_one_size_are_averaged() -> None:
    points = [(10, 100.0), (10, 300.0), (20, 400.0)]
    assert [interpolate(points, at) for at in (10, 15, 5)] == [200.0, 300.0, 100.0]


def test_a_kind_is_not_estimated_from_those_of_another_module() -> None:
    small, large, tally = torch.nn.Linear(8, 8), torch.nn.Linear(64, 64), Tally()
    for samples in (2, 8):
        tally.add([describe(small, samples, 8)], 1, 1)
    tally.count(torch, PATIENT)
    tally.add([describe(large, 8, 64)], 1, 1)
    assert tally.mean()["flops"] is None
    assert tally.may_count_later(PATIENT) is (tally._quickest <= schedule.LATER_SECONDS)
    tally.count(torch, PATIENT)
    assert tally.mean()["flops"] == (product(2) + product(8) + product(8, width=64)) / 3


def test_the_flops_by_dtype_are_estimated_as_their_sum_is() -> None:
    layer, tally = torch.nn.Linear(8, 8), Tally()
    for samples in (2, 10):
        tally.add([describe(layer, samples, 8)], 1, 1)
    tally.count(torch, PATIENT)
    with torch.autocast("cpu"):
        call = describe(layer, 10, 8)
    tally.add([call], 1, 1)
    tally.count(torch, PATIENT)
    tally.add([describe(layer, 6, 8)], 1, 1)
    mean = tally.mean()
    assert set(mean["by_dtype"]) == {"float32", "bfloat16"}
    assert sum(mean["by_dtype"].values()) == mean["flops"]


def test_what_calls_were_given_is_let_go_once_they_are_counted() -> None:
    class Data:
        pass

    class Layer(torch.nn.Linear):  # type: ignore[name-defined,misc]
        def forward(self, x: Any, *, data: Any) -> Any:
            return super().forward(x) if data else None

    layer, tally, data = Layer(8, 8), Tally(), Data()
    tally.add([describe(layer, 2, 8, data=data)], 1, 1)
    gone = weakref.ref(data)
    del data
    tally.count(torch, PATIENT)
    assert tally.mean()["flops"] == product(2)
    assert is_forgotten(gone)
    assert not tally.may_count_later(PATIENT)


def test_only_quick_kinds_beyond_those_counted_are_counted_later() -> None:
    layer, tally = torch.nn.Linear(8, 8), Tally()
    for samples in (2, 10):
        tally.add([describe(layer, samples, 8)], 1, 1)
    tally.count(torch, PATIENT)
    tally._quickest = schedule.LATER_SECONDS / 2
    found = []
    for samples in (6, 10, 11, 1):
        tally.add([describe(layer, samples, 8)], 1, 1)
        found.append(tally.may_count_later(PATIENT))
    assert found == [False, False, True, True]
    assert not tally.may_count_later(tally._quickest / 2)
    tally._quickest = schedule.LATER_SECONDS * 2
    assert not tally.may_count_later(PATIENT)


def test_the_shapes_of_a_later_stage_take_the_place_of_the_first_ones(
    metered: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "FIRST_SHARE", 1e9)  # however slow this machine is
    monkeypatch.setattr(schedule, "LATER_SECONDS", PATIENT)
    monkeypatch.setattr(schedule, "PAUSE_SECONDS", PATIENT)
    layer = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.001)
    for step in range(160):
        side = 6 if step < 20 else 10
        layer(torch.randn(2, 3, side, side)).mean().backward()
        optimizer.step()
    counts = pick(metered(), "count")
    assert counts[0]["flops"] == 2 * 2 * 2 * 4 * 4 * 4 * 27
    assert counts[-1]["flops"] == 2 * 2 * 2 * 4 * 8 * 8 * 27


def test_micro_batches_that_come_in_fours_but_for_an_epochs_end(metered: Ended) -> None:
    layer = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.001)
    for step in range(40):
        for _ in range(2 if step % 3 == 2 else 4):
            layer(torch.ones(2, 8)).mean().backward()
        optimizer.step()
    count = pick(metered(), "count")[-1]
    assert count["flops"] == pytest.approx(10 / 3 * product(2), rel=0.015)


@pytest.mark.parametrize("period", [2, 3, 4, 5, 7, 10, 13, 50])
@pytest.mark.parametrize("apart", [0.0, 200.0])
def test_looks_meet_every_part_of_a_pattern_as_often(period: int, apart: float) -> None:
    step, met = 1100, [0] * period
    for _ in range(4 * period):
        step = schedule.next_sample_step(step, 100, 1.0, apart if period < 5 else 0.0) + 1
        met[step % period] += 1
    assert max(met) - min(met) <= 4  # the distance changes now and then


def test_a_look_in_the_first_minutes_may_come_soon() -> None:
    assert schedule.next_sample_step(1000, 4, 0.001, schedule.sample_seconds(1.0, 0.0003)) <= 1070
    assert schedule.sample_seconds(1000.0, 0.0003) >= schedule.window_seconds(1000.0)


def test_what_6n_leaves_out_is_said() -> None:
    module = torch.nn.Sequential(torch.nn.Embedding(8, 8), torch.nn.Linear(8, 4))
    call = describe_call(torch, module, (torch.ones(2, 3, dtype=torch.int64),), {})
    count = Count(100, 100)
    count.why = "counting took too long"
    estimate_flops(torch, module, call, count)
    assert count.flops == 6.0 * 2 * 3 * (8 * 4 + 4)
    assert count.why.startswith("counting took too long; 6N leaves out attention")


def test_looks_that_take_long_to_write_of_are_rare(metered: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    from remote_train.host.meter.looking import Looking

    took, told = [], []

    def sample_seconds(_: float, cost: float) -> float:
        took.append(cost)
        return 0.0

    monkeypatch.setattr(schedule, "sample_seconds", sample_seconds)
    monkeypatch.setattr(
        Looking, "cost", property(lambda _: 5.0, lambda _, cost: told.append(cost)), raising=False
    )
    layer = torch.nn.Linear(8, 8)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.001)
    for _ in range(5):
        layer(torch.ones(2, 8)).mean().backward()
        optimizer.step()
    assert pick(metered(), "off") == []
    assert len(took) == 4
    assert min(took) > 5.0
    assert len(told) == 1 + 4
    assert min(told[1:]) > 0.0


def test_figures_of_calls_that_are_all_of_a_new_kind_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallying, "_FIGURES", 50)
    layer, tally = torch.nn.Linear(8, 8), Tally()
    for step in range(30):
        tally.add([describe(layer, 2, 8, step=step)], 1, 1)
        tally.mean()
        assert len(tally._figures) <= 50
