"""Turn what pydantic found into lines that name the file, the line, the key and the next step.

Shared by the schemas of hosts.toml and of the project file; pydantic's own wording never reaches a person.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from remote_train.errors import ConfigError
from remote_train.nearest import render_nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

    from remote_train.toml_file import TomlFile
    from remote_train.toml_lines import KeyPath

Problem = tuple["KeyPath", str]
"""Where, relative to the schema's root, and what."""

Model = TypeVar("Model", bound=BaseModel)

_WORDS = {
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": 'must be a list, as in ["a", "b"]',
    "dict_type": "must be a table",
    "model_type": "must be a table",
}


def read_model(model: type[Model], data: object) -> tuple[Model | None, list[ErrorDetails]]:
    """Validate data; the model, or every fault that pydantic found."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def make_problems(
    model: type[BaseModel], details: Iterable[ErrorDetails], refused: Mapping[str, str]
) -> list[Problem]:
    """Make our problems from pydantic's; `refused` says why a key that one may expect does not exist."""
    return [(_clean(detail["loc"]), _render(model, detail, refused)) for detail in details]


def make_config_error(
    file: TomlFile, problems: Iterable[Problem], *, prefix: KeyPath = (), hint: str | None = None
) -> ConfigError:
    """Make one error of all problems, in the order of their lines."""
    placed = [((*prefix, *path), message) for path, message in problems]
    placed.sort(key=lambda problem: (file.line_of(problem[0]), str(problem)))
    return ConfigError([file.render_problem(path, message) for path, message in placed], hint=hint)


def render_shown(value: object) -> str:
    """Render a value of the file for a message: short, on one line, unprintable characters escaped."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:56]}…"


def _clean(loc: tuple[int | str, ...]) -> KeyPath:
    return loc[:-1] if loc and loc[-1] == "[key]" else loc


def _render(model: type[BaseModel], detail: ErrorDetails, refused: Mapping[str, str]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _render_unknown(model, detail["loc"], detail["input"], refused)
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"must be {context['expected']}, not {render_shown(detail['input'])}"
    return f"{_WORDS.get(kind, detail['msg'])}, not {render_shown(detail['input'])}"


def _render_unknown(
    model: type[BaseModel], loc: tuple[int | str, ...], value: object, refused: Mapping[str, str]
) -> str:
    key = str(loc[-1])
    if key in refused:
        return refused[key]
    valid = _list_keys(model, loc[:-1])
    nearest = render_nearest(key, valid)
    if not nearest and isinstance(value, dict) and loc[0] == "hosts":
        return f'unknown key; a name with dots needs quotes: [hosts."{loc[-2]}.{key}"]'
    return f"unknown key{nearest or '; valid keys: ' + ', '.join(valid)}"


def _list_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """List the keys that the table at this place may have."""
    current: Any = model
    for part in loc:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = _drop_none(current.model_fields[str(part)].annotation)
        else:
            current = get_args(current)[-1]  # dict[name, X]: X
    return [field.alias or name for name, field in current.model_fields.items()]


def _drop_none(annotation: object) -> object:
    """X for X | None."""
    choices = get_args(annotation)
    return choices[0] if type(None) in choices else annotation
