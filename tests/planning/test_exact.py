"""Counts on megatron-core's own model, built on the meta device, against the formula."""

import pytest

from megatron_poro.planning.counts import rank_parameters
from megatron_poro.planning.exact import ExactCounts, count_exactly
from megatron_poro.planning.job import on_layout
from megatron_poro.planning.request import Question, config_of, job_on, placed
from megatron_poro.topology import Layout


def count(model: str, layout: Layout, *ranks: int):
    config = config_of(Question(model=model, tokens="1e9"))
    job = on_layout(job_on(config, 1), layout)
    counts = count_exactly(placed(config, job), layout, ranks=ranks)
    assert isinstance(counts, ExactCounts), counts
    return job, counts


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("llama3.1-70b", Layout(8, 8, 16)),
        ("llama3.1-70b", Layout(8, 4, 32, 5)),
        ("llama3.2-1b", Layout(2, 2, 2)),
    ],
)
def test_the_formula_counts_what_the_real_model_has(model, layout):
    job, counts = count(model, layout)
    assert [each.stage for each in counts.ranks] == list(range(layout.pipeline))
    for each in counts.ranks:
        assert each.parameters == rank_parameters(job, each.stage)
        assert each.optimizer_shard == pytest.approx(each.parameters / layout.data, rel=1e-3)
    if model == "llama3.1-70b" and layout.virtual_stages == 1:
        assert [counts.ranks[stage].parameters for stage in (0, 3, 7)] == [1201045504, 1069711360, 1201053696]
        assert counts.parameters == 70_553_706_496  # Llama 3.1 70B; 128,256 is a multiple of 8, so nothing is padded
        assert counts.checkpoint_bytes / 1e9 == pytest.approx(988, abs=1)


def test_the_data_axis_together_has_an_optimizer_state_for_every_parameter():
    layout = Layout(2, 1, 4)
    _, counts = count("llama3.2-1b", layout, 1, 3, 5, 7)
    assert sum(each.optimizer_shard for each in counts.ranks) == counts.ranks[0].parameters


def test_where_there_is_no_torch_the_formula_stands_and_says_so(monkeypatch, capsys, tmp_path):
    from megatron_poro.cli.main import main

    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ["plan", "--model", "llama3.1-8b", "--tokens", "1e9", "--nodes", "1", "--exact"]
    assert main(words) == 0
    assert (
        "parameters by formula; not counted on the real model: ModuleNotFoundError: No module named 'torch'"
        in capsys.readouterr().out
    )
