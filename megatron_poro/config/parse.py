"""Plain data (a parsed TOML file) to frozen dataclasses and back, strictly: every problem is collected with its full key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

Plain = dict[str, Any]


class Problems(list[str]):
    """Problems met while parsing, one line each."""

    def unknown(self, key: str, known: list[str]) -> None:
        """Record a key that no section has, with the nearest one that exists."""
        near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        self.append(f"{key}: unknown key; {hint}")

    def wrong_type(self, key: str, wanted: str, value: object) -> None:
        """Record a value of the wrong type."""
        self.append(f"{key}: expected {wanted}, found {value!r}")


def build(section: type, plain: object, key: str, problems: Problems) -> Any:
    """The dataclass `section` from plain data; None after recording what is wrong with it."""
    if not isinstance(plain, Mapping):
        problems.wrong_type(key, "a table", plain)
        return None
    before = len(problems)
    hints = typing.get_type_hints(section)
    prefix = f"{key}." if key else ""
    for name in plain:
        if name not in hints:
            problems.unknown(prefix + name, list(hints))
    values = {}
    for f in dataclasses.fields(section):
        if f.name in plain:
            values[f.name] = _convert(hints[f.name], plain[f.name], prefix + f.name, problems)
            _check_choice(f, values[f.name], prefix + f.name, problems)
        elif f.default is dataclasses.MISSING:
            problems.append(f"{prefix}{f.name}: missing; {f.metadata['help']}")
    return section(**values) if len(problems) == before else None


def _check_choice(f: dataclasses.Field[Any], value: object, key: str, problems: Problems) -> None:
    choices = f.metadata.get("choices")
    if choices and value not in choices:
        problems.append(f"{key}: {value!r} is none of {', '.join(choices)}")


def _convert(wanted: Any, value: object, key: str, problems: Problems) -> Any:
    """`value` as the annotated type, or None after recording the problem."""
    origin = typing.get_origin(wanted)
    if origin in (types.UnionType, typing.Union):
        return _convert(typing.get_args(wanted)[0], value, key, problems)
    if origin is tuple:
        return _convert_list(typing.get_args(wanted)[0], value, key, problems)
    if origin is dict:
        return _convert_table(typing.get_args(wanted)[1], value, key, problems)
    if dataclasses.is_dataclass(wanted):
        return build(typing.cast(type, wanted), value, key, problems)
    return _convert_scalar(wanted, value, key, problems)


def _convert_list(wanted: Any, value: object, key: str, problems: Problems) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        problems.wrong_type(key, "a list", value)
        return ()
    return tuple(_convert(wanted, item, f"{key}[{n}]", problems) for n, item in enumerate(value))


def _convert_table(wanted: Any, value: object, key: str, problems: Problems) -> Plain:
    if not isinstance(value, Mapping):
        problems.wrong_type(key, "a table", value)
        return {}
    return {name: _convert(wanted, item, f"{key}.{name}", problems) for name, item in value.items()}


def _convert_scalar(wanted: Any, value: object, key: str, problems: Problems) -> Any:
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        problems.wrong_type(key, words[wanted], value)
        return None
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Plain:
    """`base` with the keys of `over` on top, table by table; lists are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def to_plain(config: Any) -> Plain:
    """The dataclass as nested plain data, without absent sections: what TOML and JSON writers take."""
    plain: Plain = dataclasses.asdict(config)
    return {key: value for key, value in plain.items() if value is not None}
