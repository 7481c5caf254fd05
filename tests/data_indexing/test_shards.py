import pytest

from data_indexing.errors import DataError
from data_indexing.merge import merge
from data_indexing.tokenize import TokenizeOptions, tokenize_files
from megatron_poro.cli.main import main
from tests.data_indexing.pairs_of_documents import read_pair, write_texts


@pytest.fixture
def build(byte_tokenizer, write_lines, tmp_path):
    """Tokenises the share I/N of one input, or of another, to a pair in its own folder."""
    names = {
        name: write_lines([{"text": f"{name} {number}", "title": "a"} for number in range(size)], name)
        for name, size in (("fi.jsonl", 30), ("en.jsonl", 40))
    }

    def tokenize(number, count, name="fi.jsonl", **options):
        prefix = tmp_path / f"{name}-{number}-{count}-{len(list(tmp_path.iterdir()))}" / "p"
        wanted = TokenizeOptions(workers=0, shard=(number, count), **options)
        tokenize_files([names[name]], prefix, tokenizer=byte_tokenizer, options=wanted)
        return prefix

    return tokenize


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ([(0, 3), (2, 3)], r"fi.jsonl-0-3-\d/p: 1 of the 3 shards of its inputs are missing, the first is 1/3; give all"),
        ([(2, 3)], r"2 of the 3 shards of its inputs are missing, the first is 0/3"),
        ([(0, 1), (0, 3)], r"fi.jsonl-0-3-\d/p: is shard 0/3 of its inputs, .*fi.jsonl-0-1-\d/p is one of 1 shards of the same"),
        ([(0, 2), (1, 3)], r"is shard 1/3 of its inputs, .* is one of 2 shards of the same"),
        ([(0, 2), (1, 2), (0, 2)], r"fi.jsonl-0-2-\d/p: is shard 0/2 of its inputs, and so is .*fi.jsonl-0-2-\d/p; give all"),
    ],
)
def test_shards_that_are_not_one_whole_are_refused_by_name_unless_they_may(build, tmp_path, shards, message):
    prefixes = [build(number, count) for number, count in shards]
    with pytest.raises(DataError, match=message):
        merge(prefixes, tmp_path / "out" / "m")
    assert not (tmp_path / "out").exists()
    merge(prefixes, tmp_path / "out" / "m", allow_missing_shards=True)
    assert read_pair(tmp_path / "out" / "m") == [document for prefix in prefixes for document in read_pair(prefix)]


def test_whole_splits_of_several_inputs_are_merged_together(build, byte_tokenizer, tmp_path):
    finnish = [build(number, 3) for number in (1, 0, 2)]
    english = [build(number, 2, "en.jsonl") for number in range(2)]
    unknown = write_texts(tmp_path / "unknown", ["text"], byte_tokenizer)
    merge([*finnish, unknown, *english], tmp_path / "m")
    assert len(read_pair(tmp_path / "m")) == 30 + 1 + 40


def test_two_fields_of_one_input_are_two_wholes(build, tmp_path):
    merge([build(0, 1), build(0, 1, text_field="title")], tmp_path / "m")
    assert len(read_pair(tmp_path / "m")) == 60


def test_the_same_inputs_are_known_in_another_folder(build, byte_tokenizer, write_lines, tmp_path):
    first = build(0, 2)
    (tmp_path / "elsewhere").mkdir()
    copy = (tmp_path / "fi.jsonl").rename(tmp_path / "elsewhere" / "fi.jsonl")
    second = TokenizeOptions(workers=0, shard=(1, 2))
    tokenize_files([copy], tmp_path / "second", tokenizer=byte_tokenizer, options=second)
    merge([first, tmp_path / "second"], tmp_path / "m")
    assert len(read_pair(tmp_path / "m")) == 30


def test_the_command_takes_the_permission(build, tmp_path, capsys):
    words = ["data", "merge", str(build(0, 3)), "--output", str(tmp_path / "m")]
    assert main(words) == 2
    assert "the first is 1/3" in capsys.readouterr().err
    assert main([*words, "--allow-missing-shards"]) == 0
