"""Every key of a run file as text, from the dataclasses themselves: what `poro train --help` prints."""

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from megatron_poro.config.schema import RunConfig

WIDTH = 118


def render_reference() -> str:
    """One paragraph per section, one entry per key with type, default, unit and meaning."""
    lines = ["keys of a run file:"]
    lines.extend(_section(RunConfig, ""))
    return "\n".join(lines)


def _section(section: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(section)
    tables = []
    for f in fields(section):
        inner = _table(hints[f.name])
        if inner:
            tables.append((f, inner))
        else:
            yield from _entry(f, hints[f.name], prefix)
    for f, inner in tables:
        many = hints[f.name] is not inner and "tuple" in str(hints[f.name])
        name = f"{prefix}{f.name}"
        yield ""
        yield f"{f'[[{name}]]' if many else f'[{name}]'}  {f.metadata['help']}"
        yield from _section(inner, f"{name}.")


def _entry(f: "Field[Any]", hint: Any, prefix: str) -> Iterator[str]:
    kind = getattr(hint, "__name__", str(hint)) if not get_args(hint) else str(hint)
    default = "required" if f.default is MISSING else f"default {f.default!r}"
    choices = f.metadata.get("choices")
    allowed = f", one of {', '.join(choices)}" if choices else ""
    head = f"  {f.name} ({kind}, {default}{allowed})"
    yield head
    yield textwrap.fill(str(f.metadata["help"]), WIDTH, initial_indent="      ", subsequent_indent="      ")


def _table(hint: Any) -> type | None:
    return next((c for c in (hint, *get_args(hint)) if isinstance(c, type) and is_dataclass(c)), None)
