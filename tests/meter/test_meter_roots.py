"""What is looked for: every module that is trained, and none of them twice."""

from __future__ import annotations

import copy
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from remote_train.host.meter import roots, schedule, tally  # noqa: E402  (torch may not be there)
from tests.meter.counted_calls import is_forgotten  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    Ended = Callable[[], list[dict[str, Any]]]

pytestmark = pytest.mark.torch


def count_flops(lines: list[dict[str, Any]]) -> float | None:
    assert [line for line in lines if line["kind"] == "off"] == []
    flops: float | None = [line for line in lines if line["kind"] == "count"][-1]["flops"]
    return flops


def train(optimizer: Any, compute: Callable[[], Any], steps: int = 10) -> None:
    for _ in range(steps):
        compute().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def wrap(module: Any) -> Any:
    wrapper = torch.nn.Module()
    wrapper.inner = module
    return wrapper


def note_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    calls = []
    original = getattr(owner, name)

    def note(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(owner, name, note)
    return calls


def test_both_halves_of_a_gan_are_counted(metered: Ended) -> None:
    generator, critic = torch.nn.Linear(10, 100), torch.nn.Linear(100, 1)
    by_critic, by_generator = (torch.optim.Adam(one.parameters()) for one in (critic, generator))
    for _ in range(10):
        made = generator(torch.randn(8, 10))
        (critic(torch.randn(8, 100)).mean() - critic(made.detach()).mean()).backward()
        by_critic.step()
        by_critic.zero_grad()
        critic(made).mean().backward()
        by_generator.step()
        by_generator.zero_grad()
        by_critic.zero_grad()
    weights = 2 * 8 * 100  # of the critic; the generator has ten times as many
    # The generator: forward and weights. The critic: three times both, and once the gradient of what was made.
    assert count_flops(metered()) == 2 * 10 * weights + 3 * 2 * weights + weights


def test_a_part_of_a_model_never_called_is_seen_beside_one_that_is(metered: Ended) -> None:
    system, head = wrap(torch.nn.Linear(64, 64)), torch.nn.Linear(64, 2)
    optimizer = torch.optim.SGD([*system.parameters(), *head.parameters()], lr=0.001)
    train(optimizer, lambda: head(system.inner(torch.ones(8, 64))))
    assert count_flops(metered()) == 2 * 2 * 8 * 64 * 64 + 3 * 2 * 8 * 64 * 2


def test_a_model_in_two_wrappers_is_counted_once(metered: Ended) -> None:
    core = torch.nn.Linear(32, 32)
    wrappers = [wrap(core), wrap(core)]
    train(torch.optim.SGD(core.parameters(), lr=0.001), lambda: core(torch.ones(8, 32)))
    assert len(wrappers) == 2
    assert count_flops(metered()) == 2 * 2 * 8 * 32 * 32


def test_a_model_in_a_wrapper_that_is_called_and_one_that_is_not_is_counted_once(metered: Ended) -> None:
    core = torch.nn.Linear(32, 32)
    idle, called = wrap(wrap(core)), torch.nn.Sequential(core)
    train(torch.optim.SGD(core.parameters(), lr=0.001), lambda: called(torch.ones(8, 32)))
    assert idle.inner.inner is core
    assert count_flops(metered()) == 2 * 2 * 8 * 32 * 32


def test_a_new_model_for_each_task_is_counted_once(metered: Ended, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = note_calls(monkeypatch, tally, "count_call")
    monkeypatch.setattr(schedule, "window_seconds", lambda _: 1e9)
    base = torch.nn.Linear(4, 4)
    for _ in range(40):
        model = copy.deepcopy(base)
        train(torch.optim.SGD(model.parameters(), lr=0.1), partial(model, torch.ones(2, 4)), 2)
    lines = metered()
    assert len(counted) == 1
    assert count_flops(lines) == 2 * 2 * 2 * 4 * 4
    windows = [line for line in lines if line["kind"] == "steps"]
    assert len(windows) <= 2  # the count closes one
    assert sum(window["steps"] for window in windows) >= 70
    assert windows[-1]["flops"] == 2 * 2 * 2 * 4 * 4


def test_a_new_model_of_another_size_for_each_task_is_not_looked_for_each_time(
    metered: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = note_calls(monkeypatch, roots, "find_outermost")
    monkeypatch.setattr(schedule, "LOOK_SHARE", 0.0)
    for width in range(1, 13):
        model = torch.nn.Linear(width, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(optimizer, partial(model, torch.ones(2, width)), 2)
    assert [line for line in metered() if line["kind"] == "off"] == []
    assert len(looks) == schedule.FIRST_SAMPLES


def test_alike_models_trained_in_turn_share_no_window(
    metered: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps before the second optimizer leads are not counted: their time is no step's."""
    monkeypatch.setattr(schedule, "window_seconds", lambda _: 1e9)
    models = [torch.nn.Linear(4, 4) for _ in "ab"]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(optimizer, partial(model, torch.ones(2, 4)), 100)
    windows = [line for line in metered() if line["kind"] == "steps"]
    assert len(windows) == 3  # the count closes one, the second model another


def test_a_class_made_for_a_task_goes_with_its_data() -> None:
    class Data:
        pass

    def make(data: Data) -> Any:
        held = []

        class Net(torch.nn.Linear):  # type: ignore[name-defined,misc]
            def forward(self, x: Any) -> Any:
                held.append(data)
                return super().forward(x)

        return Net(4, 4)

    found, data = roots.Roots(torch), Data()
    model, gone = make(data), weakref.ref(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found.find(optimizer)
    assert found.alive() == [model]
    del model, data, optimizer
    assert is_forgotten(gone)
