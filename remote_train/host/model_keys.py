"""Where the model lies in a checkpoint, and what its tensors are called. Pure: the laptop asks it of an outline, too.

It is the checkpoint itself where that is a dict of tensors, else what lies under the first of KEYS that leads to one, also
one below the other (Lightning's `state_dict`, DeepSpeed's `module`), else the only dict of tensors at the top. Names
stay as they are, but for prefixes that torch.compile and DDP put before every one of them.
"""

from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple

KEYS = (
    *("model", "model_state_dict", "state_dict", "module", "net", "network", "weights", "params"),
    *("ema_model", "ema_state_dict", "model_ema", "state_dict_ema", "ema"),
)
"""Where a model lies, the likeliest first; averaged weights only where there are no others."""
STEPS = ("step", "global_step", "iter_num", "iteration", "iter", "steps")
PREFIXES = ("_orig_mod.", "module.")
DEEPEST = 4


def is_model(value: Any, is_tensor: Callable[[Any], bool]) -> bool:  # noqa: ANN401  (whatever a checkpoint holds)
    """Tell whether this is a dict of tensors by name; modules may add extra state of any kind."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    plain = [item for key, item in value.items() if not key.endswith("_extra_state")]
    return bool(plain) and all(map(is_tensor, plain))


def find_model(
    value: Any,  # noqa: ANN401  (whatever a checkpoint holds)
    is_tensor: Callable[[Any], bool],
) -> Optional[Tuple[Tuple[str, ...], Mapping[str, Any]]]:
    """Return where the model lies, as keys from the top, and its tensors by name; None when none is found."""
    seen: Set[int] = set()
    found = _search(value, is_tensor, seen, 0)
    if found is not None or not isinstance(value, Mapping):
        return found
    others = [
        key for key, item in value.items() if isinstance(key, str) and _is_new_model(item, is_tensor, seen)
    ]
    return ((others[0],), value[others[0]]) if len(others) == 1 else None


def _search(
    value: Any,  # noqa: ANN401  (whatever a checkpoint holds)
    is_tensor: Callable[[Any], bool],
    seen: Set[int],
    depth: int,
) -> Optional[Tuple[Tuple[str, ...], Mapping[str, Any]]]:
    if _is_new_model(value, is_tensor, seen):
        return (), value
    if not isinstance(value, Mapping) or depth >= DEEPEST:
        return None
    for key in KEYS:
        found = _search(value[key], is_tensor, seen, depth + 1) if key in value else None
        if found is not None:
            return (key, *found[0]), found[1]
    return None


def _is_new_model(value: Any, is_tensor: Callable[[Any], bool], seen: Set[int]) -> bool:  # noqa: ANN401
    """Tell whether this is a model that was not looked at yet: a hostile outline may lead to one dict again and again."""
    if not isinstance(value, Mapping) or id(value) in seen:
        return False
    seen.add(id(value))
    return is_model(value, is_tensor)


def strip_prefixes(names: List[str]) -> Dict[str, str]:
    """Return the name that each gets: without the wrappers' prefixes that all of them have."""
    found = {name: name for name in names}
    while names:
        prefix = next((item for item in PREFIXES if all(name.startswith(item) for name in names)), None)
        if prefix is None or any(name == prefix for name in names):
            break
        found = {name: short[len(prefix) :] for name, short in found.items()}
        names = list(found.values())
    return found


def find_step(value: Any) -> Optional[int]:  # noqa: ANN401  (whatever a checkpoint holds)
    """Return the step that a checkpoint says it is of."""
    if not isinstance(value, Mapping):
        return None
    steps = [value[key] for key in STEPS if key in value]
    return next((step for step in steps if isinstance(step, int) and not isinstance(step, bool)), None)


def describe_keys(value: Any) -> str:  # noqa: ANN401  (whatever a checkpoint holds)
    """Return what lies at the top of a checkpoint without a model, for the user to see."""
    if not isinstance(value, Mapping):
        return "it is a %s" % type(value).__name__
    keys = ["%s (%s)" % (str(key)[:60], type(item).__name__) for key, item in value.items()]
    return "its keys are " + ", ".join(keys[:20]) + (" and %d more" % (len(keys) - 20) if keys[20:] else "")
