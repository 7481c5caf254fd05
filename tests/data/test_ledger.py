"""The ledger equals a count of what was read."""

import json
from collections import Counter
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_poro.config import DataConfig, SourceConfig, StageConfig
from megatron_poro.data.ledger import ledger_at
from megatron_poro.data.order import build_order

CONFIG = DataConfig(
    sequence_length=8,
    sources=(SourceConfig(name="finnish", path="f", weight=0.7), SourceConfig(name="code", path="c", weight=0.3)),
    stages=(StageConfig(from_tokens=400, weights={"finnish": 1.0, "code": 2.0}),),
)
ORDER = build_order(CONFIG, (40, 11), ("f", "c"))


@settings(deadline=None)
@given(num_samples=st.integers(0, 200))
def test_the_ledger_equals_a_count_of_the_samples(num_samples: int) -> None:
    ledger = ledger_at(ORDER, num_samples)
    counted = Counter(ORDER.locate(0, num_samples).sources.tolist())
    assert [entry.samples for entry in ledger.sources] == [counted[0], counted[1]]
    assert [entry.tokens for entry in ledger.sources] == [8 * counted[0], 8 * counted[1]]
    assert [entry.epochs for entry in ledger.sources] == [Fraction(counted[0], 40), Fraction(counted[1], 11)]
    assert sum(entry.share for entry in ledger.sources) == (1 if num_samples else 0)
    assert sum(entry.tokens for entry in ledger.sources) == ledger.tokens == 8 * num_samples


def test_the_ledger_of_a_run_of_the_size_of_poro_2_is_exact() -> None:
    order = build_order(CONFIG, (150_000_000, 9_100_000), ("f", "c"))
    assert [entry.samples for entry in ledger_at(order, 20_200_000).sources] == [6_733_352, 13_466_648]


def test_the_ledger_survives_json() -> None:
    dumped = json.loads(json.dumps(ledger_at(ORDER, 100).as_dict()))
    assert dumped["samples"] == 100
    assert dumped["sources"][1] == {
        "name": "code", "samples": 48, "tokens": 384, "share": 0.48, "epochs": 48 / 11, "sequences": 11,
    }  # fmt: skip


def test_the_table_has_a_line_for_each_source_and_the_sum() -> None:
    assert ledger_at(ORDER, 100).as_table().splitlines() == [
        "source   samples  tokens   share  epochs  sequences",
        "finnish       52     416  52.00%   1.300         40",
        "code          48     384  48.00%   4.364         11",
        "total        100     800",
    ]
