"""Tokenizers and small inputs that several tests of the package use."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_indexing.tokenizer import TextTokenizer, load_tokenizer
from tests.shared_data import shared

WriteLines = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test can see it, and on a busy disk each takes a second."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def byte_tokenizer() -> TextTokenizer:
    """One id a byte, then <s> = 256 and </s> = 257."""
    vocab = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return TextTokenizer(tokenizer.to_str(), name="bytes", config={"bos_token": "<s>", "eos_token": "</s>"})


@pytest.fixture(scope="session")
def llama3() -> TextTokenizer:
    """The real tokenizer, converted once a session."""
    return load_tokenizer(shared("tokenizers/llama3"))


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Write a file of lines: bytes as they are, anything else as JSON."""

    def write(lines: Iterable[Any], name: str = "input.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))
        return path

    return write
