"""Loops of many kinds, in this process: are their steps, their time and their FLOPs seen as they are?"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Ended = Callable[[], list[dict[str, Any]]]

pytestmark = pytest.mark.torch


def make_net() -> Any:
    return torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Dropout(0.1), torch.nn.Linear(32, 4)
    )


def net_flops(samples: int) -> int:
    """Two products a weight for the first layer, whose input needs no gradient, three for the second."""
    return 2 * samples * (2 * 16 * 32 + 3 * 32 * 4)


def pick(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def total_flops(lines: list[dict[str, Any]]) -> float:
    return float(sum(line["flops"] * line["steps"] for line in pick(lines, "steps")))


def backward(net: Any, samples: int = 8) -> None:
    net(torch.randn(samples, 16)).square().mean().backward()


@pytest.mark.parametrize("passes", [1, 4])
def test_flops_and_backward_passes_of_a_step_with_accumulation(metered: Ended, passes: int) -> None:
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(12):
        for _ in range(passes):
            backward(net)
        optimizer.step()
        optimizer.zero_grad()
    lines = metered()
    assert pick(lines, "off") == []
    assert lines[0]["kind"] == "start"
    assert lines[0]["settings"]["optimizer"] == "AdamW"
    (count,) = pick(lines, "count")
    assert count["flops"] == passes * net_flops(8)
    assert (count["how"], count["why"], count["shapes"], count["samples"]) == ("counted", None, 1, passes * 8)
    assert (count["dtype"], count["parameters"]) == ("float32", 16 * 32 + 32 + 32 * 4 + 4)
    windows = pick(lines, "steps")
    assert sum(window["steps"] for window in windows) == 11  # from the end of the first step on
    assert windows[-1]["step"] == 12
    assert {window["backwards"] for window in windows} == {passes}
    assert total_flops(lines) == 11 * passes * net_flops(8)


def test_a_look_at_a_step_says_where_its_time_went(metered: Ended) -> None:
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters())
    for _ in range(6):
        backward(net)
        optimizer.step()
    samples = pick(metered(), "sample")
    assert [sample["step"] for sample in samples] == [2, 3, 4, 5]
    for sample in samples:
        parts = [sample[name] for name in ("forward", "backward", "optimizer", "data", "other")]
        assert sum(parts) == pytest.approx(sample["seconds"], abs=1e-6)
        assert min(parts[:3]) > 0
        assert sample["starved"] is None


def test_varying_shapes_are_counted_each_and_the_rest_estimated(metered: Ended) -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for samples in (1, 4, 8, 16, 32, 64, 64, 64):
        backward(net, samples)
        optimizer.step()
    count = pick(metered(), "count")[0]
    assert count["shapes"] == 4
    assert count["flops"] == (net_flops(4) + net_flops(8) + net_flops(16) + net_flops(32)) / 4


def test_a_model_that_looks_at_its_values_is_counted_on_real_ones_and_lets_go_of_them(metered: Ended) -> None:
    def forward(self: Any, x: Any) -> Any:
        return self.net(x[: int(x.sign().abs().sum()) // 16])

    net = type("Looks", (torch.nn.Module,), {"forward": forward})()
    net.net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(12):
        backward(net)
        optimizer.step()
    (count,) = pick(metered(), "count")
    assert (count["how"], count["flops"]) == ("counted on real tensors", net_flops(8))


def test_a_second_optimizer_is_no_second_step(metered: Ended) -> None:
    nets = [make_net(), make_net()]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01) for net in nets]
    for _ in range(10):
        for net, optimizer in zip(nets, optimizers, strict=True):
            backward(net)
            optimizer.step()
    lines = metered()
    assert pick(lines, "steps")[-1]["step"] == 10
    assert pick(lines, "off") == []


def test_the_lead_passes_on_when_a_second_model_is_trained(metered: Ended) -> None:
    nets = [make_net(), make_net()]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01) for net in nets]
    for net, optimizer, samples in zip(
        nets, optimizers, (8, 16), strict=True
    ):  # the first optimizer lives on
        for _ in range(100):
            backward(net, samples)
            optimizer.step()
    lines = metered()
    assert [count["flops"] for count in pick(lines, "count")] == [net_flops(8), net_flops(16)]


def test_optimizers_that_step_inside_the_backward_pass_make_one_step(metered: Ended) -> None:
    net = make_net()
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.01) for parameter in net.parameters()}
    for parameter, optimizer in optimizers.items():

        def step(_: Any, optimizer: Any = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)
    for _ in range(12):
        backward(net)
    lines = metered()
    assert pick(lines, "off") == []
    assert pick(lines, "steps")[-1]["step"] == 12
    (count,) = pick(lines, "count")
    assert count["flops"] == net_flops(8)
    assert {window["backwards"] for window in pick(lines, "steps")} == {1}


def test_flops_follow_the_calls_when_a_scaler_skips_a_step(metered: Ended) -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for iteration in range(12):
        loss = net(torch.randn(8, 16)).square().mean()
        scaler.scale(loss * (float("inf") if iteration in (2, 7, 8) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    lines = metered()
    assert pick(lines, "steps")[-1]["step"] == 9
    assert pick(lines, "start")[-1]["settings"]["grad_scaler"] is True
    assert {count["flops"] for count in pick(lines, "count")} == {net_flops(8)}
    assert total_flops(lines) == 11 * net_flops(8)


def test_a_closure_that_is_called_many_times_in_a_step_counts_each_time(metered: Ended) -> None:
    net = make_net()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3, tolerance_grad=0, tolerance_change=0)
    calls = 0

    def closure() -> Any:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = net(torch.randn(8, 16)).square().mean()
        loss.backward()
        return loss

    for _ in range(6):
        optimizer.step(closure)
    lines = metered()
    (count,) = pick(lines, "count")
    assert calls == 18
    # What LBFGS does between the closures is the optimizer's time.
    assert all(sample["optimizer"] > 0 for sample in pick(lines, "sample"))
    assert count["flops"] == 3 * net_flops(8)


def test_evaluation_saving_and_data_have_their_seconds(metered: Ended, tmp_path: Path) -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    data = torch.utils.data.DataLoader(torch.randn(96, 16), batch_size=8)
    for batch in data:
        net(batch).square().mean().backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        net(batch)
    net.train()
    torch.save(net, tmp_path / "net.pt")
    backward(net)
    optimizer.step()
    lines = metered()
    for phase in ("eval", "save", "data"):
        assert sum(window[phase] for window in pick(lines, "steps")) > 0
    assert all(
        window["eval"] + window["save"] + window["data"] <= window["seconds"]
        for window in pick(lines, "steps")
    )


def test_a_model_that_trains_in_eval_mode_does_not_evaluate(metered: Ended) -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(10):
        net.eval()
        backward(net)
        optimizer.step()
    lines = metered()
    assert sum(window["eval"] for window in pick(lines, "steps")) == 0
    (count,) = pick(lines, "count")
    assert count["flops"] == net_flops(8)


def test_nothing_of_ours_is_left_in_the_model_or_in_torch(metered: Ended) -> None:
    before = [
        torch.autograd.backward,
        torch.nn.Module.eval,
        torch.serialization._save,
        torch.amp.GradScaler.step,
    ]
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(7):
        backward(net)
        optimizer.step()
    assert not any(module._forward_pre_hooks for module in net.modules())
    metered()
    after = [
        torch.autograd.backward,
        torch.nn.Module.eval,
        torch.serialization._save,
        torch.amp.GradScaler.step,
    ]
    assert before == after


def test_a_bug_of_ours_switches_the_meter_off_and_the_loop_goes_on(
    metered: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remote_train.host.meter import sampling

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("a secret of the script")

    monkeypatch.setattr(sampling, "describe_call", fail)
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(8):
        backward(net)
        optimizer.step()
    assert not any(module._forward_pre_hooks for module in net.modules())
    lines = metered()
    assert [line["kind"] for line in lines] == ["start", "off"]
    assert "ValueError" in lines[-1]["why"]
    assert "secret" not in lines[-1]["why"]


def test_random_states_are_those_of_a_training_without_a_meter(
    request: pytest.FixtureRequest,
) -> None:
    def train() -> tuple[Any, ...]:
        torch.manual_seed(5)
        random.seed(5)
        net = make_net()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        losses = []
        for _ in range(200):
            loss = net(torch.randn(8, 16) * random.random()).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, random.getstate(), torch.get_rng_state().tolist()

    without = train()
    ended = request.getfixturevalue("metered")
    assert train() == without
    assert pick(ended(), "count")


@pytest.mark.parametrize("whole", [False, True])
def test_compiled_code_is_compiled_once_and_counted_where_the_model_is_seen(
    metered: Ended, whole: bool
) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def compute(x: Any) -> Any:
        return net(x).square().mean()

    called = torch.compile(compute if whole else net, backend="eager")
    for _ in range(115):
        loss = called(torch.randn(8, 16))
        (loss if whole else loss.square().mean()).backward()
        optimizer.step()
    lines = metered()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert pick(lines, "start")[-1]["settings"]["compiled"] is True
    (count,) = pick(lines, "count")
    if whole:
        assert (count["flops"], count["how"]) == (None, None)
        assert "compute" in count["why"]
    else:
        assert count["flops"] == net_flops(8)


def test_a_compiled_function_elsewhere_keeps_no_model_from_being_counted(metered: Ended) -> None:
    def double(x: Any) -> Any:
        return x * 2

    net, helper = make_net(), torch.compile(double, backend="eager")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(7):
        helper(torch.ones(3))
        backward(net)
        optimizer.step()
    (count,) = pick(metered(), "count")
    assert (count["flops"], count["why"]) == (net_flops(8), None)
