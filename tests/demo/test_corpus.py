import json
import re
from pathlib import Path

import pytest

from megatron_poro.demo.corpus import DOMAINS, FINNISH_FOLDER, check_corpus, read_texts, write_corpus
from megatron_poro.demo.math_problems import generate_problems
from megatron_poro.errors import PoroError


def test_the_built_in_corpus_has_enough_of_every_domain(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    check_corpus(tmp_path)
    sizes = {domain: sum(len(text.encode()) for text in read_texts(tmp_path / f"{domain}.jsonl", 10**9)) for domain in DOMAINS}
    assert sizes["fi"] >= 100_000
    assert sizes["math"] >= 300_000
    assert min(sizes["en"], sizes["code"]) >= 200_000


def test_no_english_docstring_stands_in_the_code(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    code = "\n".join(read_texts(tmp_path / "code.jsonl", 10**9))
    english = list(read_texts(tmp_path / "en.jsonl", 10**9))
    assert not [text for text in english[:200] if text in code]


def test_the_finnish_documents_have_titles_and_letters_of_their_own() -> None:
    texts = [path.read_text(encoding="utf-8") for path in FINNISH_FOLDER.glob("*.txt")]
    assert sum(len(re.findall(r"^# ", text, flags=re.MULTILINE)) for text in texts) >= 60
    assert all(text.count("ä") > 500 for text in texts)


def test_problems_are_the_same_for_a_seed_and_their_answers_are_right() -> None:
    problems = list(generate_problems(400))
    assert problems == list(generate_problems(400))
    shopping = re.compile(
        r"cost (\d+) euros each. Someone buys (\d+) \w+ and pays with (\d+) euros.*Answer: (\d+) euros", re.DOTALL
    )
    found = [tuple(map(int, match.groups())) for match in map(shopping.search, problems) if match]
    assert len(found) > 10
    assert all(paid - count * price == change for price, count, paid, change in found)


def test_a_folder_without_a_domain_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fi.jsonl").write_text(json.dumps({"text": "hyvä"}))
    with pytest.raises(PoroError, match=r"lacks en.jsonl, code.jsonl, math.jsonl"):
        check_corpus(tmp_path)
