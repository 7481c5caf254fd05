"""Plain text tables: the first column to the left, numbers to the right."""

from collections.abc import Sequence


def render_table(lines: Sequence[Sequence[str]]) -> str:
    """The lines, headings first, as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_to_line(line, widths) for line in lines)


def _to_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers = cells
    aligned = [name.ljust(widths[0]), *(number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))]
    return "  ".join(aligned).rstrip()
