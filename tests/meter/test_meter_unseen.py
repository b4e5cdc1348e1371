"""What the meter puts into a model and into torch for a step: nobody but the model's own call meets it."""

from __future__ import annotations

import copy
import io
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from remote_train.host.meter.hooks import Hooks, see_calls  # noqa: E402
from remote_train.host.meter.patches import watch_backward  # noqa: E402
from tests.meter.conftest import pick  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    Ended = Callable[[], list[dict[str, Any]]]

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
FLOPS = 2 * 2 * 8 * 16 * 4  # the input wants no gradient


def make_net() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.ReLU())


def start(net: Any, steps: int = 3) -> Any:
    """Train a few steps: the next one is being looked at when this returns."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(steps):
        step(net, optimizer)
    return optimizer


def step(net: Any, optimizer: Any) -> None:
    net(torch.randn(8, 16)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(net: Any) -> bytes:
    file = io.BytesIO()
    torch.save(net, file)
    return file.getvalue()


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_model_is_scripted_compiled_and_copied_as_without_us(metered: Ended, evaluates: bool) -> None:
    net = make_net()
    start(net)
    if evaluates:
        net.eval()
    else:
        assert isinstance(net._forward_pre_hooks, Hooks)
    x = torch.ones(2, 16)
    twin = copy.deepcopy(net)
    for model in (net, twin):
        assert torch.equal(torch.jit.script(model)(x), model(x))
        assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))
        assert not any(word in save(model) for word in (b"remote_train", b"audit", b"_seen"))
    assert type(twin._forward_pre_hooks) is OrderedDict
    assert pick(metered(), "off") == []
    assert type(net._forward_pre_hooks) is type(net._forward_hooks) is OrderedDict


def test_handles_of_the_script_remove_its_hooks_before_during_and_after() -> None:
    net, told = make_net(), []
    early = [net.register_forward_pre_hook(lambda *_: told.append("early")) for _ in "ab"]
    stop = see_calls(net, lambda *_: told.append("before"), lambda _: told.append("after"))
    early[0].remove()
    late = [net.register_forward_hook(lambda *_: told.append("late")) for _ in "ab"]
    assert (len(net._forward_pre_hooks), len(net._forward_hooks)) == (1, 2)
    late[0].remove()
    net(torch.randn(8, 16))
    assert told == ["early", "before", "late", "after"]
    stop()
    stop()
    early[1].remove()
    late[1].remove()
    net(torch.randn(8, 16))
    assert len(told) == 4
    for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"):
        assert not getattr(net, name)


def test_calls_between_eval_and_train_are_not_the_steps(metered: Ended) -> None:
    net = make_net()
    optimizer = start(net, 1)
    for _ in range(6):
        net.eval()
        net(torch.randn(8, 16))  # with gradients, though nobody wants them
        net.train()
        step(net, optimizer)
    (count,) = pick(metered(), "count")
    assert count["flops"] == FLOPS
    assert torch.nn.Module.train.__module__ == "torch.nn.modules.module"


def test_a_call_that_fails_and_is_made_again_counts_once(metered: Ended) -> None:
    class Fails(torch.nn.Sequential):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, fails: bool = False) -> Any:
            if fails:
                raise torch.OutOfMemoryError
            return super().forward(x)

    net = Fails(torch.nn.Linear(16, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(6):
        with pytest.raises(torch.OutOfMemoryError):
            net(torch.randn(8, 16), fails=True)
        step(net, optimizer)
    (count,) = pick(metered(), "count")
    assert (count["samples"], count["flops"]) == (8, FLOPS)


def test_a_warning_in_a_backward_hook_is_shown_once_though_we_look() -> None:
    net, noticed = make_net(), []
    net[0].register_full_backward_hook(lambda *_: None)  # whose inputs want no gradient: torch warns of it
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for looks in (False, True, False):
            stop = watch_backward(torch, lambda: noticed.append(1)) if looks else None
            x = net(torch.randn(8, 16)).square().mean()
            torch.autograd.grad(x, net[0].weight, retain_graph=True)
            x.backward()
            if stop is not None:
                stop()
    assert noticed == [1]
    assert len(seen) == 2, [str(one.message) for one in seen]


def test_a_hook_that_the_script_adds_while_we_look_is_compiled_and_removed_as_any_other() -> None:
    torch._dynamo.reset()  # what was compiled for one Sequential is used for another, hooks or not, without us too
    net, x = make_net(), torch.ones(2, 16)
    stop = see_calls(net, lambda *_: None, lambda _: None)
    handle = net.register_forward_hook(lambda _module, _args, out: out * 2)
    stop()
    assert type(net._forward_hooks) is OrderedDict
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(compiled(x), net(x))
    handle.remove()
    assert not net._forward_hooks
    assert torch.equal(compiled(x), net(x))
