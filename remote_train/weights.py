"""`pull --weights`: the model of a checkpoint alone, which the host's own Python makes; nothing is unpickled here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from remote_train.errors import ConnectionLost, PullIncomplete
from remote_train.host import layout
from remote_train.host.weights import TRIES, longest_seconds
from remote_train.listed import Unit
from remote_train.refusals import NoSuchFile, SourceChanged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.blocks import Fetcher
    from remote_train.listener import Listener

AS_THEY_ARE = (".safetensors", ".safetensors.index.json")


class WeightsMaker:
    """Has a host make weights, and tells the fetcher where they lie there."""

    def __init__(self, fetcher: Fetcher, listener: Listener) -> None:
        self._fetcher = fetcher
        self._listener = listener

    def make(self, unit: Unit, dtype: str | None) -> Unit:
        """Return what is to be brought of a checkpoint: its own safetensors files, or one that is made of it.

        Raises PullIncomplete, HostUnfit, HostSpace, and what the line raises.
        """
        own = pick_models([unit])
        if own and dtype is None:
            self._tell_saved(unit, own[0].size)
            return own[0]
        host = self._fetcher.line.session.host
        self._listener.tell("note", text=f"{host} makes the weights of {unit.name}, unless it has them")
        made = self._ask(unit, dtype)
        self._tell_saved(unit, made["size"])
        name = f"{unit.name}.{dtype or 'weights'}.safetensors"
        self._fetcher.elsewhere[name] = {"path": made["name"], "area": layout.WEIGHTS}
        row = {"path": name, "size": made["size"], "mtime_ns": made["mtime_ns"]}
        return Unit(name, ({**row, "weights_of": unit.name, "saved_ns": unit.mtime_ns},))

    def _ask(self, unit: Unit, dtype: str | None) -> dict[str, Any]:
        while True:
            try:
                return self._ask_once(unit, dtype)
            except ConnectionLost as loss:
                self._fetcher.line.renew(loss)
            except SourceChanged:
                raise PullIncomplete(
                    f"{unit.name} changed all the time while being read",
                    hint="run the same command again in a moment",
                ) from None
            except NoSuchFile as error:
                raise PullIncomplete(str(error), hint="run the same command again for a newer one") from None

    def _ask_once(self, unit: Unit, dtype: str | None) -> dict[str, Any]:
        session = self._fetcher.line.session
        number = session.submit("weights", **self._fetcher.facts, path=unit.name, dtype=dtype)
        return session.wait(number, TRIES * longest_seconds(unit.size) + 60.0)

    def _tell_saved(self, unit: Unit, size: int) -> None:
        facts = {"unit": unit.name, "bytes": size, "whole": unit.size}
        text = f"{unit.name}: {size:,} bytes of weights in place of {unit.size:,}"
        self._listener.tell("note", text=text, **facts)


def pick_models(units: Sequence[Unit]) -> list[Unit]:
    """Return the checkpoints that have safetensors files, with those files alone; a part of one is no copy of it."""
    found = []
    for unit in units:
        rows = tuple(row for row in unit.rows if row["path"].endswith(AS_THEY_ARE))
        mark = {"weights_of": unit.name} if len(rows) < len(unit.rows) else {}
        if any(row["path"].endswith(AS_THEY_ARE[0]) for row in rows):
            found.append(replace(unit, rows=tuple({**row, **mark} for row in rows)))
    return found
