"""Where documents start, and which token ends them by the manifests of what is read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_indexing.manifest import Counts, Manifest, Policy, save_manifest
from megatron_poro.config import DataConfig, SourceConfig, ValidationConfig
from megatron_poro.data import document_positions, document_starts, look_up_eod
from megatron_poro.errors import ConfigError

EOD = 2


@given(st.integers(1, 4), st.integers(1, 12), st.data())
def test_documents_start_with_rows_and_after_every_eod(batch: int, length: int, data: st.DataObject) -> None:
    tokens = np.array(data.draw(st.lists(st.integers(0, 3), min_size=batch * length, max_size=batch * length)), np.uint16)
    flat = tokens.tolist()
    starts = document_starts(tokens.reshape(batch, length), EOD)
    expected = [n for n in range(batch * length) if n % length == 0 or flat[n - 1] == EOD]
    assert starts.tolist() == [*expected, batch * length]
    positions = document_positions(starts).tolist()
    assert positions == [n - max(start for start in expected if start <= n) for n in range(batch * length)]


def config(folder: Path, **eods: int | str | None) -> DataConfig:
    """Sources `a`, `b`, ... and a held-out pair, with manifests that name these tokens; no manifest for the word `none`."""
    for name, eod in eods.items():
        if eod == "none":
            continue
        policy = None if eod == "unknown" else Policy("none", None, "document" if eod is not None else "none", eod)  # type: ignore[arg-type]
        manifest = Manifest(
            tokenizer=None, policy=policy, dtype="uint16", counts=Counts(1, 1, 0, 1), inputs=(), bin_sha256="", idx_sha256=""
        )
        save_manifest(folder / name, manifest)
    *sources, held = eods
    return DataConfig(
        sequence_length=8,
        sources=tuple(SourceConfig(name=name, path=str(folder / name), weight=1.0) for name in sources),
        validation=(ValidationConfig(name=held, path=str(folder / held)),),
        reset_attention_mask=True,
    )


def test_the_manifests_name_the_token(tmp_path: Path) -> None:
    assert look_up_eod(config(tmp_path, a=7, b=7, held=7)).eod_token_id == 7


def test_a_given_token_is_taken_and_none_is_looked_for_without_need(tmp_path: Path) -> None:
    data = config(tmp_path, a="none", held="none")
    assert look_up_eod(replace(data, eod_token_id=5)).eod_token_id == 5
    assert look_up_eod(replace(data, reset_attention_mask=False)).eod_token_id == -1


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ("none", r"data.sources\[1\] \(b\): .* has no manifest .*; set data.eod_token_id, or leave out"),
        ("unknown", r"data.sources\[1\] \(b\): .* merged from pairs without a manifest"),
        (None, r"data.sources\[1\] \(b\): .* without a token at the end of documents"),
        (8, r"data.eod_token_id: .* different tokens \(data.sources\[0\] \(a\) by 7, data.sources\[1\] \(b\) by 8"),
    ],
)
def test_what_the_manifests_do_not_say_is_named_with_a_way_out(tmp_path: Path, second: int | str | None, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        look_up_eod(config(tmp_path, a=7, b=second, held=7))
