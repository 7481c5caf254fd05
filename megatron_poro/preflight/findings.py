"""What a check says: a colour, and one line with the key, the numbers and the way out."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from megatron_poro import __version__

GREEN, YELLOW, RED = "green", "yellow", "red"
_WEIGHT = {GREEN: 0, YELLOW: 1, RED: 2}
_ANSI = {GREEN: "\x1b[32m", YELLOW: "\x1b[33m", RED: "\x1b[31m"}


@dataclass(frozen=True)
class Finding:
    """One line. `check` is the name of the check (`subject.what`), by which `checks.allow` silences it."""

    check: str
    colour: str
    text: str
    source: str = ""

    @property
    def subject(self) -> str:
        """What it is about: lines of one subject stand together."""
        return self.check.partition(".")[0]


def green(check: str, text: str) -> Finding:
    """As it should be."""
    return Finding(check, GREEN, text)


def yellow(check: str, text: str, source: str = "") -> Finding:
    """May be meant: to be looked at."""
    return Finding(check, YELLOW, text, source)


def red(check: str, text: str, source: str = "") -> Finding:
    """Would go wrong."""
    return Finding(check, RED, text, source)


def not_checked(check: str, why: str) -> Finding:
    """A question that nobody could answer here: yellow, never silent."""
    return yellow(check, f"not checked: {why}")


def size(num_bytes: float) -> str:
    """Bytes for people: GB up to a TB."""
    return f"{num_bytes / 1e12:,.3g} TB" if num_bytes >= 1e12 else f"{num_bytes / 1e9:,.3g} GB"


def worst(findings: Sequence[Finding]) -> str:
    """The colour of the whole."""
    return max((finding.colour for finding in findings), key=_WEIGHT.__getitem__, default=GREEN)


def render(findings: Sequence[Finding], *, coloured: bool = False) -> str:
    """Lines grouped by subject, in the order of the checks, and a sum at the end."""
    subjects = list(dict.fromkeys(finding.subject for finding in findings))
    lines = [line for subject in subjects for line in _render_subject(subject, findings, coloured)]
    counts = Counter(finding.colour for finding in findings)
    return "\n".join([*lines, ", ".join(f"{counts[colour]} {colour}" for colour in (RED, YELLOW, GREEN))])


def render_json(findings: Sequence[Finding]) -> str:
    """One JSON object: version, the worst colour, the findings in order."""
    listed = [{"subject": finding.subject, **asdict(finding)} for finding in findings]
    return json.dumps({"version": __version__, "colour": worst(findings), "findings": listed}, indent=1)


def _render_subject(subject: str, findings: Sequence[Finding], coloured: bool) -> Iterator[str]:
    yield subject
    for finding in findings:
        if finding.subject == subject:
            colour = f"{_ANSI[finding.colour]}{finding.colour:<6}\x1b[0m" if coloured else f"{finding.colour:<6}"
            source = f" ({finding.source})" if finding.source else ""
            yield f"  {colour}  {finding.check.partition('.')[2]}: {' '.join(finding.text.split())}{source}"
