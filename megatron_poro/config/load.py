"""Run file to RunConfig: preset, file and `section.key=value` overrides merged, paths resolved, every problem reported at once."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

import tomli_w

from megatron_poro.config.parse import Plain, Problems, build, merge, to_plain
from megatron_poro.config.schema import RANDOM, RunConfig
from megatron_poro.config.validate import find_problems
from megatron_poro.errors import ConfigError


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The resolved run file.

    Paths in the file are relative to its folder, paths in overrides to the working directory. Raises ConfigError with one line
    per problem.
    """
    plain = _map_paths(RunConfig, _read_toml(path), lambda value: _resolve(value, path.parent))
    problems = Problems()
    over = _map_paths(RunConfig, parse_overrides(overrides, problems), lambda value: _resolve(value, Path.cwd()))
    config = resolve(merge(plain, over), problems)
    if config is None or problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return config


def resolve(plain: Plain, problems: Problems) -> RunConfig | None:
    """Presets filled in and every value checked; None after recording problems."""
    plain = _fill_presets(plain, problems)
    config: RunConfig | None = build(RunConfig, plain, "", problems)
    if config is not None:
        problems.extend(find_problems(config))
    return config


def save_run(config: RunConfig, path: Path) -> None:
    """Write the resolved config as a run file of its own: it names every value and needs no preset."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(tomli_w.dumps(to_plain(config)), encoding="utf-8")
    partial.rename(path)


def shapes() -> dict[str, Plain]:
    """Shape presets by name."""
    return tomllib.loads(_preset_text("shapes.toml"))


def recipes() -> dict[str, Plain]:
    """Recipe presets by name."""
    files = resources.files("megatron_poro.config").joinpath("presets").iterdir()
    names = sorted(file.name.removesuffix(".toml") for file in files if file.name.startswith("poro2"))
    return {name: tomllib.loads(_preset_text(f"{name}.toml")) for name in names}


def parse_overrides(overrides: Sequence[str], problems: Problems) -> Plain:
    """`section.key=value` words as nested plain data; values are TOML, a bare word is a string."""
    plain: Plain = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            problems.append(f"override {word!r}: not of the form section.key=value")
            continue
        value: object = _parse_value(text)
        for part in reversed(key.split(".")):
            value = {part: value}
        plain = merge(plain, cast(Plain, value))
    return plain


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _read_toml(path: Path) -> Plain:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such run file; give the path of a TOML file (examples/runs has complete ones)"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from None


def _preset_text(name: str) -> str:
    return resources.files("megatron_poro.config").joinpath("presets", name).read_text(encoding="utf-8")


def _fill_presets(plain: Plain, problems: Problems) -> Plain:
    """The named recipe under the file's keys, and the named shape under the model's."""
    plain = merge(_named(recipes(), plain.get("recipe"), "recipe", problems), plain)
    model = plain.get("model")
    if isinstance(model, dict):
        shape = _named(shapes(), model.get("shape"), "model.shape", problems)
        plain["model"] = merge(shape, model)
    return plain


def _named(presets: Mapping[str, Plain], name: object, key: str, problems: Problems) -> Plain:
    if not name:
        return {}
    if not isinstance(name, str) or name not in presets:
        problems.append(f"{key}: unknown preset {name!r}; known: {', '.join(presets)}")
        return {}
    return presets[name]


def _resolve(value: str, folder: Path) -> str:
    return str((folder / value).resolve()) if value and value != RANDOM else value


def _map_paths(section: type, plain: Plain, change: Callable[[str], str]) -> Plain:
    """`plain` with every string that stands in a path field of `section`, or below it, changed."""
    hints = get_type_hints(section)
    result = dict(plain)
    for f in fields(section):
        value = plain.get(f.name)
        inner = _dataclass_in(hints[f.name])
        if f.metadata.get("path") and isinstance(value, str):
            result[f.name] = change(value)
        elif inner and isinstance(value, dict):
            result[f.name] = _map_paths(inner, value, change)
        elif inner and isinstance(value, list):
            result[f.name] = [_map_paths(inner, item, change) if isinstance(item, dict) else item for item in value]
    return result


def _dataclass_in(hint: Any) -> type | None:
    candidates = (hint, *get_args(hint))
    return next((c for c in candidates if isinstance(c, type) and is_dataclass(c)), None)
