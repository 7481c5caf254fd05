"""Four domains of text as JSON lines: the user's own, or what any machine with Python and this project has.

Finnish is prose written for the project (`examples/corpus/`), code and English are the Python installation's sources and
docstrings, math comes from a generator of worked problems. A module gives either code or English, so no English text stands in
the code too.
"""

import ast
import json
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_poro.demo.math_problems import generate_problems
from megatron_poro.errors import PoroError

DOMAINS = ("fi", "en", "code", "math")
MAX_MODULE_BYTES = 40_000
MIN_DOCSTRING_CHARACTERS = 300
NUM_MATH_PROBLEMS = 3000
FINNISH_FOLDER = Path(__file__).resolve().parents[2] / "examples" / "corpus"


def write_corpus(folder: Path) -> None:
    """Write `fi.jsonl`, `en.jsonl`, `code.jsonl` and `math.jsonl` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    code, english = _split_modules()
    texts = {"fi": _finnish_documents(), "en": english, "code": code, "math": generate_problems(NUM_MATH_PROBLEMS)}
    for domain in DOMAINS:
        _write_jsonl(folder / f"{domain}.jsonl", texts[domain])


def check_corpus(folder: Path) -> None:
    """Raise PoroError naming every domain's file that a user's folder lacks."""
    missing = [f"{domain}.jsonl" for domain in DOMAINS if not (folder / f"{domain}.jsonl").is_file()]
    if missing:
        raise PoroError(f"--corpus {folder}: lacks {', '.join(missing)}; each holds JSON lines with a text field")


def read_texts(path: Path, max_bytes: int) -> Iterator[str]:
    """Texts of a JSONL file until `max_bytes` of it are read."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            max_bytes -= len(line)
            try:
                text = json.loads(line)["text"]
            except (ValueError, LookupError, TypeError):
                raise PoroError(f"{path}:{number}: not a JSON object with a text field; correct or remove the line") from None
            yield str(text)
            if max_bytes < 0:
                return


def _write_jsonl(path: Path, texts: Iterable[str]) -> None:
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")


def _finnish_documents() -> Iterator[str]:
    """The project's Finnish prose; a line `# Title` starts a document."""
    files = sorted(FINNISH_FOLDER.glob("*.txt"))
    if not files:
        raise PoroError(f"{FINNISH_FOLDER}: no Finnish text here; run from a checkout, or give your own with --corpus DIR")
    for file in files:
        for document in re.split(r"^# ", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            if document.strip():
                yield document.strip()


def _split_modules() -> tuple[list[str], list[str]]:
    """Sources of half of the standard library's modules, and docstrings of the other half."""
    code: list[str] = []
    english: list[str] = []
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library).as_posix()
        if "test" in name or name.startswith(("site-packages", "lib2to3")):
            continue
        source = path.read_bytes().decode("utf-8", errors="ignore")
        if zlib.crc32(name.encode()) % 2:
            english.extend(_docstrings(source))
        elif len(source) < MAX_MODULE_BYTES:
            code.append(source)
    return [text for text in code if text.strip()], english


def _docstrings(source: str) -> Iterator[str]:
    """The longer docstrings of a module: prose about what something does."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= MIN_DOCSTRING_CHARACTERS:
                yield text
