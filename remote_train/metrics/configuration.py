"""What two runs were asked to train, and where that differs: a gain is only stated between runs of one configuration. Pure.

Configuration is: script or module, its arguments, processes, the files of the package, data, variables, the checkpoint that
it started from, and what a nanoGPT-like script printed of its settings. `--key=value` counts wherever it stands, and
`--key value` is the same; what is no option keeps its order.

Not configuration are *device arguments* (`--device`, `--compile`, `--dtype`, …): the launcher adds them for a device, or a user
chooses by them how the same model is computed. They are named beside a ratio. What else the project file gives per device, such as a
batch size, changes what is trained, and counts. *Labels*, which say where results go, do not, nor do pictures and documents among
the files, which nothing trains by: `plot` may have drawn one. A .txt counts, it may be the text that is trained on. Unknown is never equal: two runs
of which one is not known well enough are not of the same configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DEVICE_KEYS = frozenset({"device", "compile", "dtype", "precision", "backend", "amp", "fused", "pin_memory"})
LABEL_KEYS = frozenset(
    {"out", "out_dir", "output_dir", "run_name", "wandb_log", "wandb_project", "wandb_run_name"}
)
DOCUMENTS = (".gif", ".jpeg", ".jpg", ".md", ".pdf", ".png", ".rst", ".svg")
NAMED_FILES = 4
"""Of files that differ so many are named."""

_OPTION = re.compile(r"--?(?P<key>[A-Za-z][\w.-]*)(?:=(?P<value>.*))?\Z", re.DOTALL)
_ASSIGNMENT = re.compile(r"\+{0,2}(?P<key>[A-Za-z][\w.]*)=(?P<value>.*)\Z", re.DOTALL)  # as Hydra has them
_SET = "set"
_ABSENT = "not set"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One run's configuration; a value of None is not known."""

    target: str | None
    """Script or `-m MODULE`, and the folder it runs in."""
    arguments: tuple[str, ...] = ()
    processes: int | None = None
    package: str | None = None
    files: Mapping[str, str] | None = None
    """Path -> hash, or the target of a link; None when the manifest is not kept here."""
    data: Mapping[str, str | None] = field(default_factory=dict)
    """Place in the project -> id of its contents, None where it lies on the host and nobody knows what it is."""
    lying: Mapping[str, str] = field(default_factory=dict)
    """Where such data lies: `HOST:PATH`. Of one place it is taken to be the same."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: frozenset[str] = frozenset()
    checkpoint: str | None = ""
    """What it started from, "" for nothing."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """As a nanoGPT-like script printed them."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting and its two values, as they are shown."""

    name: str
    a: str
    b: str

    def __str__(self) -> str:
        if not self.a and not self.b:
            return self.name
        return f"{self.name} ({self.a} and {self.b})"


@dataclass(frozen=True, slots=True)
class Contrast:
    """Where two configurations differ: in what counts, in device arguments, in labels; and what is not known."""

    settings: tuple[Difference, ...]
    device: tuple[Difference, ...]
    labels: tuple[Difference, ...]
    unknown: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Tell whether a ratio between the two may be called a gain."""
        return not self.settings and not self.unknown


def contrast(a: Configuration, b: Configuration) -> Contrast:
    """Name every difference, each once."""
    found = [*_list_plain(a, b), *_list_arguments(a, b), *_list_data(a, b), *_list_env(a, b)]
    named = {_plain(item.name) for item in found}
    found += [item for item in _list_settings(a, b) if _plain(item.name) not in named]
    return Contrast(
        settings=tuple(i for i in found if _plain(i.name) not in DEVICE_KEYS | LABEL_KEYS),
        device=tuple(i for i in found if _plain(i.name) in DEVICE_KEYS),
        labels=(*(i for i in found if _plain(i.name) in LABEL_KEYS), *_list_documents(a, b)),
        unknown=tuple(_list_unknown(a, b)),
    )


def parse_arguments(arguments: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return what is no option, in order, and the options by name; one that is given twice has both values.

    A word behind `--key` is taken for its value, as argparse and click have it. For a flag that is wrong and does no harm: the same
    words in the same order still compare as equal.
    """
    words: list[str] = []
    options: dict[str, str] = {}
    waiting: str | None = None
    for argument in arguments:
        option = _OPTION.match(argument)
        assignment = None if option else _ASSIGNMENT.match(argument)
        if option is None and assignment is None and waiting is not None:
            options[waiting] = _join(options.get(waiting), argument)
            waiting = None
            continue
        if waiting is not None:
            options[waiting] = _join(options.get(waiting), _SET)
        waiting = None
        if option is not None and option["value"] is None:
            waiting = option["key"]
        elif option is not None or assignment is not None:
            match = option or assignment
            options[match["key"]] = _join(options.get(match["key"]), match["value"])  # type: ignore[index]  # one of them is there
        else:
            words.append(argument)
    if waiting is not None:
        options[waiting] = _join(options.get(waiting), _SET)
    return tuple(words), options


def _join(before: str | None, value: str) -> str:
    return value if before is None else f"{before} {value}"


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _list_plain(a: Configuration, b: Configuration) -> Iterator[Difference]:
    for name in ("target", "processes", "checkpoint"):
        mine, other = getattr(a, name), getattr(b, name)
        if mine is not None and other is not None and mine != other:
            label = "script" if name == "target" else name
            yield Difference(label, str(mine) or "none", str(other) or "none")
    names = [path for path in _list_files(a, b) if not _is_document(path)]
    if names:
        yield Difference(f"code: {_name_files(names)}", "", "")


def _list_documents(a: Configuration, b: Configuration) -> Iterator[Difference]:
    names = [path for path in _list_files(a, b) if _is_document(path)]
    if names:
        yield Difference(f"files: {_name_files(names)}", "", "")


def _is_document(path: str) -> bool:
    return path.lower().endswith(DOCUMENTS)


def _name_files(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_FILES} more" if len(names) > NAMED_FILES else ""
    return ", ".join(names[:NAMED_FILES]) + more


def _list_files(a: Configuration, b: Configuration) -> list[str]:
    """Return the paths that differ; where only modes do, the packages differ in nothing that can be named."""
    if not a.package or not b.package or a.package == b.package or a.files is None or b.files is None:
        return []
    mine, other = a.files, b.files
    paths = sorted(path for path in mine.keys() | other.keys() if mine.get(path) != other.get(path))
    return paths or ["modes of files"]


def _list_arguments(a: Configuration, b: Configuration) -> Iterator[Difference]:
    (words, mine), (others, theirs) = parse_arguments(a.arguments), parse_arguments(b.arguments)
    for number, (word, other) in enumerate(zip_longest(words, others, fillvalue=_ABSENT), 1):
        if word != other:
            yield Difference(f"argument {number}", word, other)
    yield from _list_unequal(
        {_plain(k): v for k, v in mine.items()}, {_plain(k): v for k, v in theirs.items()}
    )


def _list_unequal(a: Mapping[str, object], b: Mapping[str, object]) -> Iterator[Difference]:
    for key in [*a, *(key for key in b if key not in a)]:
        mine, other = a.get(key, _ABSENT), b.get(key, _ABSENT)
        if not _is_same(str(mine), str(other)):
            yield Difference(key, str(mine), str(other))


def _is_same(a: str, b: str) -> bool:
    """Tell whether two values are one: 1e-3 and 0.001 are, and of long seeds every digit counts."""
    if a == b:
        return True
    try:
        return Decimal(a) == Decimal(b)
    except InvalidOperation:
        return False


def _list_settings(a: Configuration, b: Configuration) -> Iterator[Difference]:
    """Compare what was printed where both printed something: a script that prints none says nothing by that."""
    if a.settings and b.settings:
        yield from _list_unequal(a.settings, b.settings)


def _list_data(a: Configuration, b: Configuration) -> Iterator[Difference]:
    for place in sorted(a.data.keys() | b.data.keys()):
        mine, other = a.data.get(place, _ABSENT), b.data.get(place, _ABSENT)
        if mine is not None and other is not None and mine != other:
            there = [value if value == _ABSENT else value[:12] for value in (mine, other)]
            yield Difference(f"data {place}", *there)


def _list_env(a: Configuration, b: Configuration) -> Iterator[Difference]:
    """Compare variables; their values are nobody's business, and secrets' are not even known."""
    for name in sorted(a.env.keys() | b.env.keys() | a.secrets ^ b.secrets):
        mine, other = _place_variable(name, a), _place_variable(name, b)
        if mine != other:
            yield Difference(f"variable {name}", mine, other)
        elif a.env.get(name) != b.env.get(name):
            yield Difference(f"variable {name}", "one value", "another")


def _place_variable(name: str, side: Configuration) -> str:
    return "a secret" if name in side.secrets else _SET if name in side.env else _ABSENT


def _list_unknown(a: Configuration, b: Configuration) -> Iterator[str]:
    for name in ("target", "processes", "checkpoint", "package"):
        if getattr(a, name) is None or getattr(b, name) is None:
            yield {"target": "the script", "package": "the code"}.get(name, f"the {name}")
    if a.package and b.package and a.package != b.package and (a.files is None or b.files is None):
        yield "which files of the code differ"
    for place in sorted(a.data.keys() & b.data.keys()):
        mine, other = a.data[place], b.data[place]
        if (mine is None or other is None) and (mine != other or a.lying.get(place) != b.lying.get(place)):
            yield f"whether data {place} is the same"
