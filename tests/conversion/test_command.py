"""`poro convert` parses and calls."""

import argparse
from pathlib import Path

import pytest

from megatron_poro.cli.convert import add_parser
from tests.conversion.llamas import random_tensors, save_llama


def run(*arguments: object) -> int:
    """The exit code of `poro convert ARGUMENTS`."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["convert", *map(str, arguments)])
    code: int = args.run(args)
    return code


def test_there_back_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_llama(tmp_path / "source")
    assert run("to-megatron", source, tmp_path / "megatron") == 0
    assert run("to-hf", tmp_path / "megatron", tmp_path / "hf", "--dtype", "keep", "--reference", source) == 0
    assert "30 tensors read back and equal" in capsys.readouterr().out
    assert run("verify", source, tmp_path / "hf") == 0
    assert "are the same model" in capsys.readouterr().out


def test_verify_prints_what_differs_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = random_tensors()
    changed["model.norm.weight"] += 1
    one, other = save_llama(tmp_path / "one"), save_llama(tmp_path / "other", tensors=changed)
    assert run("verify", one, other) == 1
    assert capsys.readouterr().out == "model.norm.weight: numbers differ\n"
