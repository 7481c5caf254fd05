"""A job script as data: sbatch's options, the variables it sets, the words of its commands, and what it trains.

Read as text, never run. Scripts that it calls beside itself are read too, one level deep: launchers set variables.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LONG = {
    "-N": "--nodes", "-n": "--ntasks", "-t": "--time", "-p": "--partition", "-A": "--account", "-a": "--array",
    "-c": "--cpus-per-task", "-J": "--job-name", "-d": "--dependency", "-G": "--gpus",
}  # fmt: skip
"""sbatch's short options that are looked at (man sbatch)."""
_ASSIGNMENT = re.compile(r"(?:SINGULARITYENV_|APPTAINERENV_)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
_SHELL_SCRIPT = re.compile(r"((?:[\w.-]+/)*[\w.-]+\.sh)\b")
_FOLDER_VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})/")
_ENDS = ("&", "&&", "|", "||", ";")
_MAX_BYTES, _LONGEST_NAME = 2**20, 4096


@dataclass(frozen=True)
class JobScript:
    """A script and what it calls beside itself. `text` has no comments, its lines are whole commands."""

    path: Path
    options: Mapping[str, str]
    text: str

    @cached_property
    def commands(self) -> list[list[str]]:
        """The words of each line, variables filled in where the script says what they are."""
        return [[self._expand(word) for word in words] for words in map(_split, self.text.splitlines())]

    @cached_property
    def variables(self) -> dict[str, str]:
        """What it sets, as written; inside a container too."""
        return {name: value for line in self.text.splitlines() for name, value in _assignments(_split(line))}

    @cached_property
    def settings(self) -> dict[str, str]:
        """What it sets, variables filled in."""
        return {name: self._expand(value) for name, value in self.variables.items()}

    @property
    def training(self) -> list[str] | None:
        """The words behind `poro train`: run file and overrides; None where it trains nothing of ours."""
        for words in self.commands:
            for n, word in enumerate(words[1:], 1):
                if word == "train" and Path(words[n - 1]).name in ("poro", "megatron_poro"):
                    return list(_until_end(words[n + 1 :]))
        return None

    def _expand(self, word: str, depth: int = 0) -> str:
        """A word with the script's own variables filled in; what only the job knows stays as it is."""
        if depth > 5 or "$" not in word:
            return word

        def fill(match: re.Match[str]) -> str:
            name = match[1] or match[3]
            value = self.variables.get(name, match[2])
            own = value is not None and f"${{{name}" in value  # NAME=${NAME:-default}
            return match[0] if value is None else _default_of(value) if own else value

        return self._expand(_VARIABLE.sub(fill, word), depth + 1)


def read_script(path: Path) -> JobScript:
    """The script, and the shell scripts beside it that it calls. Raises OSError when it cannot be read."""
    raw = _read(path)
    words = (_FOLDER_VARIABLE.sub("", word) for word in raw.split() if len(word) < _LONGEST_NAME)
    names = (match[1] for word in words if (match := _SHELL_SCRIPT.search(word)))
    called = [path.parent / name for name in dict.fromkeys(names) if (path.parent / name).is_file()]
    texts = [_join(raw), *(_join(_read(each)) for each in called if each.resolve() != path.resolve())]
    return JobScript(path, dict(_options(raw)), "\n".join(texts))


def minutes_of(time: str) -> int | None:
    """Minutes of a time limit as sbatch reads it, rounded up; None for what it would not."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        return None
    days, first, second, third = (int(part) if part else None for part in match.groups())
    if days is not None:  # D-HH[:MM[:SS]]
        return days * 1440 + (first or 0) * 60 + (second or 0) + bool(third)
    if third is not None:  # HH:MM:SS
        return (first or 0) * 60 + (second or 0) + bool(third)
    return (first or 0) + bool(second)  # MM[:SS]


def _read(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_BYTES)


def _options(raw: str) -> Iterator[tuple[str, str]]:
    for line in raw.splitlines():
        if line.startswith("#SBATCH"):
            yield from _options_of(_split(line.removeprefix("#SBATCH")))


def _options_of(words: list[str]) -> Iterator[tuple[str, str]]:
    """Options in any of sbatch's forms: --name=value, --name value, -N4, -N 4."""
    for n, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
        elif word.startswith("-") and word[:2] in LONG:
            name, equals, value = LONG[word[:2]], word[2:], word[2:].removeprefix("=")
        else:
            continue
        following = words[n + 1] if n + 1 < len(words) and not words[n + 1].startswith("-") else ""
        yield name, value if equals else following


def _join(raw: str) -> str:
    """The text without comments, each command on one line."""
    lines = raw.replace("\\\n", " ").splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a quotation over several lines
        return line.split()


def _assignments(words: list[str]) -> Iterator[tuple[str, str]]:
    """What leads a command, and what follows `export` or `env`."""
    leading = True
    for word in words:
        match = _ASSIGNMENT.fullmatch(word)
        if match and leading:
            yield match[1], match[2].removesuffix(";")
        elif word.startswith(("--export=", "--env=")):
            parts = map(_ASSIGNMENT.fullmatch, word.partition("=")[2].split(","))
            yield from ((part[1], part[2]) for part in parts if part)
        elif word in ("export", "env", "declare", "local", "readonly", "-x", "then", "do", "{"):
            leading = True
        else:
            leading = leading and bool(match)


def _default_of(value: str) -> str:
    match = _VARIABLE.fullmatch(value)
    return (match[2] or "") if match else value


def _until_end(words: list[str]) -> Iterator[str]:
    for word in words:
        if word in _ENDS or re.match(r"[0-9&]?>", word):
            return
        yield word.removesuffix(";")
