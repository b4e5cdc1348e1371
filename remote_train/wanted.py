"""Which GPUs a run asks for: by `--gpus`, and by CUDA_VISIBLE_DEVICES of hosts.toml, of a flag or of the login. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.errors import HostUnfit, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Gpu = Mapping[str, Any]

VISIBLE = "CUDA_VISIBLE_DEVICES"
_UUIDS = ("GPU-", "MIG-")


def parse_gpus(text: str, facts: Mapping[str, Any], visible: str | None = None) -> dict[str, Any]:
    """Return what `--gpus` asks for: `{"count": n}`, or `{"ids": […]}` by index or UUID.

    Where CUDA_VISIBLE_DEVICES is set a number is of those that it names: `{"count": n, "among": [UUIDs in its order]}`. Names are
    the user's last word.
    """
    known = facts["gpus"]
    if _is_number(text) and int(text) == 0:
        raise UsageError(
            f"--gpus {text}: a run has one GPU at least", hint='without a GPU: `device = "cpu"` in hosts.toml'
        )
    if text == "all" or _is_number(text):
        left = list_visible(visible, known)
        count = len(left) if text == "all" else int(text)
        if count > len(left):
            of = (
                f"{VISIBLE} leaves {len(left)} of its {len(known)}"
                if visible is not None
                else f"the host has {len(known)}"
            )
            raise HostUnfit(
                f"{count} GPUs are asked for and {of}", hint="`--gpus all` takes those that there are"
            )
        return {"count": count, **({} if visible is None else {"among": [gpu["uuid"] for gpu in left]})}
    ids = [item.strip() for item in text.split(",") if item.strip()]
    cards = {name: gpu["uuid"] for gpu in known for name in (str(gpu["index"]), gpu["uuid"])}
    unknown = [item for item in ids if item not in cards]
    divided = [item for item in ids if sum(str(gpu["index"]) == item for gpu in known) > 1]
    if divided:
        raise UsageError(
            f"--gpus {text}: GPU {divided[0]} is divided (MIG)",
            hint="name its parts by UUID: "
            + ", ".join(gpu["uuid"] for gpu in known if str(gpu["index"]) == divided[0]),
        )
    twice = len({cards.get(item) for item in ids}) < len(ids)
    if not ids or unknown or twice:
        what = "a GPU is named twice" if twice and not unknown else "no such GPU"
        raise UsageError(
            f"--gpus {text}: {what}: {', '.join(unknown or ids) or 'nothing named'}",
            hint="give a number, `all`, or indices like `0,` and UUIDs, with commas between",
        )
    return {"ids": ids}


def may_be_there(text: str) -> bool:
    """Tell whether some host could have what `--gpus` asks for: a number, `all`, or indices and UUIDs, none of them twice."""
    if text == "all" or _is_number(text):
        return text == "all" or int(text) > 0
    ids = [item.strip() for item in text.split(",") if item.strip()]
    known = all((item.isascii() and item.isdecimal()) or item.startswith(_UUIDS) for item in ids)
    return bool(ids) and known and len(set(ids)) == len(ids)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def list_visible(word: str | None, gpus: Sequence[Gpu]) -> Sequence[Gpu]:
    """Return the GPUs that the variable names, in its order; all where it is not set. Numbers are nvidia-smi's, as for `--gpus`.

    Raises UsageError for one that is not there, HostUnfit where it leaves none, as CUDA itself would.
    """
    if word is None:
        return gpus
    items = [item.strip() for item in word.split(",") if item.strip()]
    if not items or items[0] in ("-1", "NoDevFiles"):
        raise HostUnfit(
            f"{VISIBLE} is {word!r}: it leaves no GPU to a run",
            hint='take it out of `env` or of the login there, name GPUs by `--gpus 0,`, or set device = "cpu"',
        )
    chosen: list[Gpu] = []
    for item in items:
        found = [gpu for gpu in gpus if _is_named(item, gpu)]
        if len(found) != 1 or found[0] in chosen:
            raise UsageError(
                f"{VISIBLE}={word}: {'named twice' if found and found[0] in chosen else 'no such GPU'}: {item}",
                hint="numbers as nvidia-smi gives them, or UUIDs; or leave it out and name GPUs by --gpus",
            )
        chosen.append(found[0])
    return chosen


def _is_named(item: str, gpu: Gpu) -> bool:
    whole = item == str(gpu["index"]) or item == gpu["uuid"]
    return whole or (item.startswith(_UUIDS) and str(gpu["uuid"]).startswith(item))
