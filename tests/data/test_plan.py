"""The plan accounts for every token of every pair and says which source is repeated."""

import json

import numpy as np
import pytest

from data_indexing.writer import IndexedWriter
from megatron_poro.config import DataConfig, SourceConfig, ValidationConfig
from megatron_poro.data import Plan, TrainingData, build_plan

LENGTH = 8
NUM_TOKENS = {"once": 8001, "twice": 405, "often": 100, "never": 50}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """400 samples of three sources in equal shares; `once` holds 2 sequences out, `never` has no weight."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, num_tokens in NUM_TOKENS.items():
        with IndexedWriter(folder / name, np.dtype(np.int32)) as writer:
            writer.add_document(np.arange(num_tokens))
    weights = {"once": 2.0, "twice": 1.0, "often": 1.0, "never": 0.0}
    data = TrainingData(
        DataConfig(
            sequence_length=LENGTH,
            sources=tuple(SourceConfig(name=name, path=str(folder / name), weight=weights[name]) for name in NUM_TOKENS),
            validation=(ValidationConfig(name="v", source="once", last_sequences=2),),
        )
    )
    return build_plan(data, 400)


def test_tokens_of_a_pair_are_read_held_out_or_unused(plan: Plan) -> None:
    assert plan.tokens == sum(source.read.tokens for source in plan.sources) == 400 * LENGTH
    for source in plan.sources:
        read_once = min(source.read.samples, source.read.num_sequences) * LENGTH
        assert source.tokens == NUM_TOKENS[source.read.name] == read_once + source.held_out_tokens + source.unused_tokens
    assert [source.held_out_tokens for source in plan.sources] == [16, 0, 0, 0]
    assert [source.unused_tokens for source in plan.sources] == [8001 - 16 - 1600, 5, 4, 50]


def test_repetition_is_noted_and_beyond_four_passes_warned_of_with_the_source_of_the_rule(plan: Plan) -> None:
    assert plan.notes == ["twice: 2.000 epochs; some of its text is read more than once"]
    assert plan.warnings == [
        "often: 8.333 epochs; beyond 4 repeated text is worth less and less (Muennighoff et al. 2023, arXiv:2305.16264): "
        "lower its weight or add text"
    ]


def test_the_table_and_json_say_the_same(plan: Plan) -> None:
    assert plan.as_table().splitlines() == [
        "source  tokens   share  epochs  in files  held out  unused",
        "once     1,600  50.00%   0.200     8,001        16   6,385",
        "twice      800  25.00%   2.000       405         0       5",
        "often      800  25.00%   8.333       100         0       4",
        "never        0   0.00%   0.000        50         0      50",
        "total    3,200                     8,556        16   6,444",
        *[f"warning: {line}" for line in plan.warnings],
        *[f"note: {line}" for line in plan.notes],
    ]
    dumped = json.loads(json.dumps(plan.as_dict()))
    assert dumped["sources"][1] == {
        "name": "twice", "tokens": 800, "share": 0.25, "epochs": 2.0,
        "tokens_in_files": 405, "held_out_tokens": 0, "unused_tokens": 5,
    }  # fmt: skip
    assert dumped["warnings"] == plan.warnings
