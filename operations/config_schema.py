"""Checks a value against a pydantic schema, with messages for the author of a YAML file."""

import copy
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from operations.config_yaml import Place

Problem = tuple[Place, str]
"""The place of an error, and its message."""
SHOWN_CHARS = 60
"""Characters of a value that a message shows."""
FEW = 14
"""If a schema has at most so many keys, the message about an unknown key lists them."""
IN_WORDS = {
    "a valid integer": "a whole number",
    "a valid dictionary or instance of": "a mapping with the keys of",
    "a valid dictionary": "a mapping",
    "a valid list": "a list",
    "a valid tuple": "a list",
    "a valid": "a",
}
"""Words of pydantic's messages, and the words that YAML has for them."""


def problems(schema: type[BaseModel], value: Any) -> list[Problem]:
    """The errors of a value: those that the schema itself does not report, if there are any, else the schema's.

    Serve's schemas allow unknown keys, take true as a number, and check some of their parts only when the value is
    used. Here all of these are errors.
    """
    found = list(_unchecked(schema, value, ()))
    return found or list(_refused(schema, value))


def _unchecked(schema: type[BaseModel], value: Any, place: Place) -> Iterator[Problem]:
    """Unknown keys, booleans in place of numbers, and errors of parts for which the schema also allows any mapping."""
    if not isinstance(value, dict):
        return
    fields = schema.model_fields
    for key, inner in value.items():
        here = (*place, key)
        if key not in fields:
            yield here, _unknown(key, fields)
        elif key == "runtime_env":
            yield from _runtime_environment(inner, here)
        else:
            yield from _inside(fields[key].annotation, inner, here)


def _inside(annotation: Any, value: Any, place: Place) -> Iterator[Problem]:
    leaves = dict(_leaves(annotation))
    if isinstance(value, bool) and bool not in leaves and leaves.keys() & {int, float}:
        yield place, f"must be a number, not {_shown(value)}"
    for model, listed in leaves.items():
        if not _is_model(model) or isinstance(value, list) != listed:
            continue
        for here, each in [((*place, i), each) for i, each in enumerate(value)] if listed else [(place, value)]:
            found = list(_unchecked(model, each, here))
            if not found and isinstance(each, dict) and dict in leaves:
                found = [((*here, *where), problem) for where, problem in _refused(model, each)]
            yield from found


def _leaves(annotation: Any, listed: bool = False) -> Iterator[tuple[Any, bool]]:
    """The types in an annotation (dict for `Dict[str, int]`), each with a flag: whether they are items of a list."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, list, tuple, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _leaves(part, listed or origin in (list, tuple))
    else:
        yield origin or annotation, listed


def _is_model(leaf: Any) -> bool:
    return isinstance(leaf, type) and issubclass(leaf, BaseModel)


def _runtime_environment(value: Any, place: Place) -> Iterator[Problem]:
    from ray.runtime_env import RuntimeEnv

    if not isinstance(value, dict):
        return
    for key in value:
        if key not in RuntimeEnv.known_fields:
            yield (*place, key), _unknown(key, RuntimeEnv.known_fields)
    variables = value.get("env_vars") or {}
    for name, text in variables.items() if isinstance(variables, dict) else ():
        if not isinstance(text, str):
            yield (*place, "env_vars", name), f"must be text, in quotes, not {_shown(text)}"


def _refused(schema: type[BaseModel], value: Any) -> Iterator[Problem]:
    try:
        # A copy: some of Serve's validators change their input.
        schema.model_validate(copy.deepcopy(value))
    except ValidationError as error:
        said: dict[Place, list[str]] = {}
        for details in error.errors(include_url=False):
            place, problem = _in_words(schema, value, details)
            said.setdefault(place, []).append(problem)
        yield from ((place, " or ".join(dict.fromkeys(all_of_it))) for place, all_of_it in said.items())
    except (TypeError, AttributeError) as error:  # some of Serve's validators do not check types first
        yield (), f"a value has the wrong type ({' '.join(str(error).split())})"


def _in_words(schema: type[BaseModel], value: Any, details: ErrorDetails) -> Problem:
    place = _in_data(details, value)
    kind, message = details["type"], " ".join(details["msg"].split())
    if kind == "missing":
        return place, "is missing"
    if kind == "extra_forbidden":
        return place, _unknown(place[-1], _fields_at(schema, place[:-1]))
    if kind in ("value_error", "assertion_error"):
        return place, message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.partition(", unable to parse")[0].replace("Input should", "must")
    for theirs, ours in IN_WORDS.items():
        message = message.replace(theirs, ours)
    return place, f"{message}, not {_shown(details['input'])}"


def _in_data(details: ErrorDetails, value: Any) -> Place:
    """The place without the type names that pydantic adds for the members of a union."""
    place: Place = ()
    last = details["loc"][-1] if details["loc"] else None
    for key in details["loc"]:
        if isinstance(value, dict) and (key in value or (details["type"] == "missing" and key == last)):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            continue
        place = (*place, key)
    return place


def _fields_at(schema: type[BaseModel], place: Place) -> Mapping[str, Any]:
    fields: dict[str, Any] = dict(schema.model_fields)
    for key in place:
        if isinstance(key, str):
            models = [leaf for leaf, _ in _leaves(fields[key].annotation) if _is_model(leaf)]
            fields = {name: field for model in models for name, field in model.model_fields.items()}
    return fields


def _unknown(key: Any, known: Mapping[str, Any] | set[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    if near:
        return f"unknown key; did you mean `{near[0]}`?"
    few = f"known are {', '.join(sorted(known))}" if len(known) <= FEW else "see Ray Serve's reference of config files"
    return f"unknown key; {few}"


def _shown(value: Any) -> str:
    """A value as YAML writes it, shortened."""
    if value is None:
        text = "empty"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
