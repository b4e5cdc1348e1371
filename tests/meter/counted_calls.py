"""Count a call as the meter does, and hold it to having changed nothing."""

from __future__ import annotations

import contextlib
import gc
import pickle
import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from remote_train.host.meter.calls import describe_call
from remote_train.host.meter.counting import Count, count_call

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterator

PATIENT = 60.0  # seconds: the machine is shared; how long a count may take is the meter's to say


def count(module: Any, *args: Any, keep: bool = False, seconds: float = PATIENT, **kwargs: Any) -> Count:
    """Describe a call and count it; everything that it could have changed is compared."""
    with unchanged(module):
        call = describe_call(torch, module, args, kwargs, keep=keep)
        return count_call(torch, call, time.monotonic() + seconds)


@contextlib.contextmanager
def unchanged(module: Any) -> Iterator[None]:
    """Compare parameters, buffers, gradients, random states and torch's switches before and after, bit by bit."""
    before = [(tensor, tensor.detach().clone(), tensor.grad) for tensor in list_tensors(module)]
    states, switches = read_random_states(), read_switches()
    yield
    for tensor, value, grad in before:
        assert type(tensor) in {torch.Tensor, torch.nn.Parameter}
        assert torch.equal(tensor, value)
        assert tensor.grad is grad
    for old, new in zip(states, read_random_states(), strict=True):
        assert old == new
    assert switches == read_switches()


def list_tensors(module: Any) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def read_random_states() -> list[Any]:
    return [
        random.getstate(),
        pickle.dumps(np.random.get_state()),  # noqa: NPY002  (what scripts draw from)
        torch.get_rng_state().numpy().tobytes(),
    ]


def read_switches() -> dict[str, Any]:
    cuda: Any = torch.backends.cuda
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": torch.backends.cudnn.enabled,
        "flash": cuda.flash_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def is_forgotten(reference: weakref.ref[Any]) -> bool:
    gc.collect()
    return reference() is None
