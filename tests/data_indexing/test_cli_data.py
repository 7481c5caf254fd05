import argparse
import subprocess
import sys

import pytest

from data_indexing.errors import DataError
from data_indexing.format import bin_path
from megatron_poro.cli.data import add_parser


@pytest.fixture
def poro():
    parser = argparse.ArgumentParser(prog="poro")
    add_parser(parser.add_subparsers(required=True))

    def call(*words):
        args = parser.parse_args(["data", *map(str, words)])
        return args.run(args)

    return call


@pytest.fixture
def tokenizer(byte_tokenizer, tmp_path):
    byte_tokenizer.save_hf(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_text_goes_through_all_commands_and_comes_out_as_it_was(poro, tokenizer, write_lines, tmp_path, capfdbinary):
    texts = {name: [f"{name} {number}\n" for number in range(4)] for name in "ab"}
    flags = ["--tokenizer", tokenizer, "--text-field", "doc.text", "--workers", 1]
    for name in "ab":
        source = write_lines([{"doc": {"text": text}} for text in texts[name]], f"{name}.jsonl")
        assert poro("tokenize", source, *flags, "--output", tmp_path / name) == 0
    assert poro("merge", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "m") == 0
    assert poro("verify", tmp_path / "m", tmp_path / "a", "--tokenizer", tokenizer) == 0
    capfdbinary.readouterr()
    assert poro("inspect", tmp_path / "m", "--tokenizer", tokenizer, "--documents", "2:6", "--raw") == 0
    assert capfdbinary.readouterr().out == b"a 2\na 3\nb 0\nb 1\n"


def test_verify_prints_faults_and_exits_with_2(poro, tokenizer, write_lines, tmp_path, capsys):
    poro("tokenize", write_lines([{"text": "a"}]), "--tokenizer", tokenizer, "--output", tmp_path / "p")
    bin_path(tmp_path / "p").write_bytes(b"xx")
    assert poro("verify", tmp_path / "p") == 2
    assert "fault   files" in capsys.readouterr().out


def test_errors_of_the_user_reach_the_main_program(poro, tmp_path):
    with pytest.raises(DataError, match="No such file"):
        poro("inspect", tmp_path / "p")


@pytest.mark.parametrize("text", ["x", "1", "1:", "1:2:3"])
def test_a_range_of_documents_is_a_colon_b(poro, text, capsys):
    with pytest.raises(SystemExit):
        poro("inspect", "p", "--documents", text)
    assert "is not A:B, such as 0:10" in capsys.readouterr().err


def test_the_parser_imports_no_code_of_the_commands():
    program = "import sys, megatron_poro.cli.data; print([m for m in sys.modules if m in ('numpy', 'tokenizers')])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
