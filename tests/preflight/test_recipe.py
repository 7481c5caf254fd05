"""Run files against the recipes that they name."""

import shutil
from pathlib import Path

import pytest

from data_indexing.manifest import Policy
from tests.preflight.cases import Run, write_all, write_pair
from tests.runs import REPOSITORY


@pytest.fixture(params=["poro2-8b", "poro2-70b"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    run = write_all(tmp_path, launched=False)
    shutil.copy(REPOSITORY / "examples" / "runs" / f"{request.param}.toml", run.file)
    return run


def test_a_recipe_as_published_is_green(run: Run) -> None:
    assert [f.colour for f in run.of("recipe.keys", "sft.packing=false")] == ["green"]
    assert [f.colour for f in run.of("recipe.post_training", "sft.packing=false")] == ["green"]
    assert [f.colour for f in run.of("recipe.keys", "parallel.tensor=4", "training.micro_batch_size=2")] == ["green"]


def test_every_changed_number_is_named_with_both_values(run: Run) -> None:
    found = run.of("recipe.keys", "optimizer.learning_rate=1e-4", "data.sequence_length=4096")
    assert {f.colour for f in found} == {"yellow"}
    texts = " ".join(f.text for f in found)
    assert "optimizer.learning_rate is 0.0001, 0.000" in texts
    assert "data.sequence_length is 4096, 8192 in recipe" in texts
    assert "82,749,423,616 tokens, 50% of the 165,498,847,232" in texts


def test_the_same_length_in_tokens_is_no_change(run: Run) -> None:
    assert [f.colour for f in run.of("recipe.keys", "training.steps=0", "training.tokens=165_498_847_232")] == ["green"]


def test_documents_of_a_recipe_begin_and_end_with_its_tokens(run: Run) -> None:
    (run.folder / "data").mkdir()
    write_pair(run.folder / "data" / "fi", policy=Policy("none", None, "document", 2))
    (found,) = [f for f in run.of("tokens.policy") if f.colour == "red"]
    assert "data.sources[0] (fi): BOS none, end 2" in found.text
    assert "poro data tokenize --preset poro2" in found.text


def test_without_a_recipe_nothing_is_compared(tmp_path: Path) -> None:
    run = write_all(tmp_path, launched=False)
    assert run.of("recipe.keys") == []
