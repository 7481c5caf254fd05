"""`poro data merge`, `inspect` and `fertility` as commands; what they compute is tested where it is computed."""

import pytest

from megatron_poro.cli.main import main
from tests.data_indexing.pairs_of_documents import contents, read_pair, write_texts


@pytest.fixture
def prefixes(byte_tokenizer, tmp_path):
    byte_tokenizer.save_hf(tmp_path / "tokenizer")
    return [write_texts(tmp_path / name, [f"{name} {number}" for number in range(20)], byte_tokenizer) for name in ("fi", "en")]


def poro(*words):
    return main(["data", *map(str, words)])


def test_the_memory_of_a_shuffle_does_not_change_its_bytes(prefixes, tmp_path):
    for memory in (0.01, 2):
        assert poro("merge", *prefixes, "--output", tmp_path / f"{memory}" / "m", "--shuffle", 3, "--shuffle-memory", memory) == 0
    assert contents(tmp_path / "0.01") == contents(tmp_path / "2")
    assert read_pair(tmp_path / "2" / "m") != read_pair(prefixes[0]) + read_pair(prefixes[1])


@pytest.mark.parametrize("memory", ["x", "0", "-1", "nan", "inf"])
def test_a_size_of_memory_is_a_number_of_gigabytes(memory, capsys):
    with pytest.raises(SystemExit):
        poro("merge", "a", "--output", "m", "--shuffle-memory", memory)
    assert "is not a size in GB" in capsys.readouterr().err


def test_statistics_follow_the_documents(prefixes, tmp_path, capfdbinary):
    words = ["--statistics", "--top", 1, "--documents", "0:1", "--tokenizer", tmp_path / "tokenizer"]
    assert poro("inspect", prefixes[0], *words) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert lines[2] == "fi 0"
    assert lines[3] == "tokens in a document (20 documents)"
    assert lines[-2] == "most frequent tokens (of 130)"


def test_fertility_prints_a_table_and_saves_a_picture(tmp_path, prefixes, capfdbinary):
    (tmp_path / "a.txt").write_text("sana sana")
    picture = tmp_path / "p.svg"
    assert poro("fertility", tmp_path / "a.txt", "--tokenizer", tmp_path / "tokenizer", "--picture", picture) == 0
    assert capfdbinary.readouterr().out.decode().splitlines()[1].split()[2:] == ["2", "9", "9", "4.500", "1.000"]
    assert "<svg" in picture.read_text()
