"""Pickles from strangers, read as data: nothing is imported, called or made but dictionaries, lists, numbers and stand-ins.

Only the opcodes that checkpoints use are known. A name becomes a constant or a function of the caller's, or a `Kind`, and what
would be an object of it an `Inert`, which remembers what it was given. A name that is not allowed is an error, so that a file
which would run code elsewhere is found out and not passed on.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET),
    *(pickle.LONG_BINGET, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2),
    *(pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND),
    *(pickle.APPENDS, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE),
    *(pickle.NEWOBJ, pickle.BUILD, pickle.BINPERSID),
)


class UnsafeGlobalError(Exception):
    """A pickle names something that what it should hold has no need of."""


class Kind(NamedTuple):
    """A class that was named; it was not imported."""

    module: str
    name: str


class Inert:
    """Stands for an object of a class: what it was made with, and the state that was set."""

    __slots__ = ("args", "kind", "state")

    def __init__(self, kind: Kind, args: object) -> None:
        self.kind, self.args = kind, args
        self.state: object = None


@dataclass(frozen=True)
class Call:
    """A function that stands for one that a pickle names."""

    function: Callable[..., Any]


def read_pickle(
    content: bytes,
    *,
    known: Mapping[Kind, Any],
    allowed: Callable[[Kind], bool],
    load_reference: Callable[[Any], Any] | None = None,
) -> Any:
    """The tree of a pickle. `known` gives constants and `Call`s by name, `allowed` says which other names may become inert, and
    `load_reference` what stands for a persistent id.

    Raises UnsafeGlobalError for another name, and nearly anything for a pickle that is damaged.
    """
    return _Reader(content, known, allowed, load_reference).load()


def fields(value: object) -> dict[str, Any]:
    """The attributes of an inert object; none where its state is no dictionary or it is no inert object."""
    state = value.state if isinstance(value, Inert) else None
    return {key: item for key, item in state.items() if isinstance(key, str)} if isinstance(state, dict) else {}


_Unpickler: Any = pickle._Unpickler


class _Reader(_Unpickler):  # type: ignore[misc]
    """The standard library's unpickler in Python, with few opcodes and none of its ways to run code."""

    def __init__(
        self,
        content: bytes,
        known: Mapping[Kind, Any],
        allowed: Callable[[Kind], bool],
        load_reference: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(io.BytesIO(content))
        self._known, self._allowed, self._load_reference = known, allowed, load_reference

    def find_class(self, module: str, name: str) -> Any:
        kind = Kind(module, name)
        if kind in self._known:
            return self._known[kind]
        if not self._allowed(kind):
            raise UnsafeGlobalError(f"{module}.{name}"[:200])
        return kind

    def persistent_load(self, pid: Any) -> Any:
        if self._load_reference is None:
            raise pickle.UnpicklingError("a reference outside the pickle")
        return self._load_reference(pid)

    def _reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple) or not isinstance(function, Call | Kind):
            raise pickle.UnpicklingError("a call of what is no function")
        self.append(function.function(*args) if isinstance(function, Call) else Inert(function, args))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert) and target.state is None:
            target.state = state
        elif not isinstance(target, dict):  # that of a dictionary is the metadata of a module's state
            raise pickle.UnpicklingError("a state for what has none")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            _check_key(key)
            if isinstance(target, dict):
                target[key] = value
            elif not isinstance(target, Inert):
                raise pickle.UnpicklingError("an item for what is no dictionary")

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise pickle.UnpicklingError("an item for what is no list")

    dispatch = {code[0]: _Unpickler.dispatch[code[0]] for code in _OPCODES} | {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
    }


def _check_key(key: object) -> None:
    """Keys are hashed, and hashing what is nested may take for ever or overflow the stack."""
    flat = key if type(key) is tuple else (key,)
    if not all(isinstance(item, str | bytes | int | float | Inert | type(None)) for item in flat):
        raise pickle.UnpicklingError("a key that is no plain value")
