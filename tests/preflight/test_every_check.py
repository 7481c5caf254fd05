"""Every check, by name: green on a run that is as it should be, and its own colour once something is wrong with it."""

import re
from pathlib import Path

import pytest

from megatron_poro.preflight.findings import GREEN
from megatron_poro.preflight.names import NAMES
from tests.preflight.breaks import BREAKS, VALIDATION, Break
from tests.preflight.cases import Run, colours, write_all, write_checkpoint, write_pair


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return write_all(tmp_path)


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: f"{broken.check}-{broken.says[:30]}")
def test_what_is_wrong_is_said_with_its_colour(broken: Break, run: Run) -> None:
    broken.before(run)
    found = run.of(broken.check, *broken.overrides, **broken.question)
    assert any(finding.colour == broken.colour and re.search(broken.says, finding.text) for finding in found), found


def test_a_run_that_is_as_it_should_be_is_green_and_every_check_answers(run: Run) -> None:
    found = colours(run.check())
    assert not {name for name, seen in found.items() if seen != {GREEN}}
    write_checkpoint(run)
    resumed = colours(run.check())
    piped = colours(run.check("parallel.pipeline=2", "training.global_batch_size=64"))
    write_pair(run.folder / "held", seed=7)
    apart = colours(run.check(VALIDATION))
    assert apart["heldout.documents"] == apart["heldout.disjoint"] == {GREEN}
    recipes = {"recipe.keys", "recipe.post_training"}  # test_recipe.py
    silent = {"run.allow", "disk.quota", "script.words"}
    assert found.keys() | resumed.keys() | piped.keys() | apart.keys() == NAMES.keys() - recipes - silent
    assert resumed["resume.contract"] == resumed["resume.optimizer"] == piped["layout.bubble"] == {GREEN}


def test_each_check_is_broken_by_a_test_here_or_in_a_file_of_its_own() -> None:
    elsewhere = {
        "recipe.keys",
        "recipe.post_training",
        "run.paths",
        "disk.quota",
        "machine.clock",
        "machine.locale",
        "machine.umask",
    }
    assert {broken.check for broken in BREAKS} | elsewhere == NAMES.keys()
