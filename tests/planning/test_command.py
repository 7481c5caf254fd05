"""`poro plan` as a user meets it: plans, searches, pictures, errors."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from megatron_poro.cli.main import main
from megatron_poro.config import load_run

MODEL = ("plan", "--model", "llama3.1-70b", "--tokens", "165.5e9", "--nodes", "128")
POROS = ("parallel.tensor=8", "parallel.pipeline=8")


def plan(capsys, *words: str) -> str:
    assert main(list(words)) == 0
    return str(capsys.readouterr().out)


def plan_json(capsys, *words: str) -> dict[str, Any]:
    return dict(json.loads(plan(capsys, *words, "--json")))


def refuse(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    error = str(capsys.readouterr().err)
    assert error.count("\n") == 1
    return error


def test_the_70b_on_128_nodes_is_inside_the_bracket(capsys):
    found = plan_json(capsys, *MODEL, *POROS)
    assert found["layout"] == {"tensor": 8, "pipeline": 8, "data": 16, "virtual_stages": 1, "context": 1}
    low, high = found["bracket_days"]
    assert (low, high) == pytest.approx((13.6, 17.1), abs=0.1)
    assert low < found["step_days"] < high
    assert found["fits"] and len(found["memory"]) == 8
    assert found["checkpoint_bytes"] / 1e9 == pytest.approx(988, abs=1)
    assert sum(found["step_terms_seconds"].values()) == pytest.approx(found["step_seconds"])


def test_the_plan_says_both_conventions_and_every_stage(capsys):
    text = plan(capsys, *MODEL, *POROS)
    assert "with causal attention" in text and "with full" in text
    lines = text.partition("memory of a rank")[2].splitlines()[2:10]
    assert [line.split()[0] for line in lines] == list("01234567")


def test_explain_names_every_term_and_source(capsys):
    text = plan(capsys, *MODEL, *POROS, "--explain")
    for term in (
        "compute",
        "imbalance",
        "tensor",
        "context",
        "pipeline",
        "bubble",
        "data",
        "update",
        "fixed",
        "Young",
        "arXiv 2205.05198",
    ):
        assert term in text


def test_the_searched_layout_becomes_a_run_file(capsys, tmp_path):
    path = tmp_path / "run.toml"
    text = plan(capsys, *MODEL, "--search", "--write", str(path))
    assert "layouts fit" in text
    config = load_run(path)
    parallel = config.parallel
    assert parallel.tensor * parallel.pipeline * parallel.data * parallel.context == 1024
    assert config.training.tokens == 165_500_000_000
    again = plan_json(capsys, "plan", str(path))
    assert again["nodes"] == 128
    assert str(again["layout"]["tensor"]) in text
    assert "exists" in refuse(capsys, *MODEL, "--write", str(path))


def test_overrides_change_a_run_file(capsys, tmp_path):
    path = tmp_path / "run.toml"
    plan(capsys, *MODEL, *POROS, "--write", str(path))
    assert plan_json(capsys, "plan", str(path), "--nodes", "256", "parallel.data=0")["layout"]["data"] == 32
    assert "parallel.data (16) does not fit" in refuse(capsys, "plan", str(path), "--nodes", "256")
    assert plan_json(capsys, "plan", str(path), "training.recompute=full")["memory"][0]["activations"] < 3e9
    assert plan_json(capsys, "plan", str(path), "--tokens", "1e9")["steps"] == 239


def test_batches_that_grow_are_planned_with_the_last(capsys, tmp_path):
    path = tmp_path / "run.toml"
    plan(capsys, *MODEL, *POROS, "--write", str(path))
    ramp = "training.batch_ramp=[{from_tokens=1000000000, global_batch_size=1024}]"
    found = plan_json(capsys, "plan", str(path), ramp)
    assert found["global_batch_size"] == 1024
    assert found["step_days"] == pytest.approx(found["tokens"] / (1024 * 8192) * found["step_seconds"] / 86400)


def test_price_and_failures_count(capsys):
    calm = plan_json(capsys, *MODEL, *POROS, "--failures-per-1000-node-days", "0", "--price", "2")
    rough = plan_json(capsys, *MODEL, *POROS, "--failures-per-1000-node-days", "50")
    assert calm["days"] == calm["step_days"] < rough["days"]
    assert calm["cost"] == pytest.approx(2 * calm["gpu_hours"]) and rough["cost"] is None
    assert calm["gpu_hours"] == pytest.approx(calm["days"] * 24 * 128 * 4)  # LUMI bills an MI250X, two GCDs, as one GPU


def test_scaling_prints_both_kinds_and_where_it_ends(capsys, tmp_path):
    path = tmp_path / "scaling.svg"
    text = plan(capsys, *MODEL, *POROS, "--scale", "64..4096", "--plot", str(path))
    assert "strong scaling" in text and "weak scaling" in text and "pay" in text
    found = plan_json(capsys, *MODEL, *POROS, "--scale", "64..4096")
    efficiencies = [point["efficiency"] for point in found["strong_scaling"]]
    assert efficiencies == sorted(efficiencies, reverse=True) and len(efficiencies) == 7
    assert ET.parse(path).getroot().tag.endswith("svg")


def test_the_timeline_is_a_picture_of_every_pass(capsys, tmp_path):
    path = tmp_path / "timeline.svg"
    plan(capsys, *MODEL, *POROS, "--timeline", str(path), "--straggler", "3:1.2")
    rectangles = list(ET.parse(path).getroot().iter("{http://www.w3.org/2000/svg}title"))
    assert len(rectangles) == 8 * 32 * 2


@pytest.mark.parametrize("cluster", ["generic-a100", "generic-h100", "generic-h200", "generic-gh200", "generic-mi300x"])
def test_other_clusters_are_planned(capsys, cluster):
    found = plan_json(capsys, *MODEL, "--cluster", cluster)
    assert found["fits"] and 0.1 < found["mfu"]["causal"] < 0.65


def test_a_cluster_of_ones_own(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "lumi"\n[hardware]\nnetwork_gbps = 6.25\nprice_per_gpu_hour = 3.0\n')
    found = plan_json(capsys, *MODEL, *POROS, "--cluster", str(path))
    assert found["cost"] == pytest.approx(3 * found["gpu_hours"])


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("plan",), "give a run file, or --model NAME"),
        (("plan", "--model", "gpt9", "--tokens", "1e9", "--nodes", "1"), "unknown 'gpt9'; known: tiny"),
        (("plan", "--model", "llama3.1-8b", "--nodes", "1"), "--tokens: how many?"),
        (("plan", "--model", "llama3.1-8b", "--tokens", "many", "--nodes", "1"), "'many' is no number of tokens"),
        (MODEL[:-2], "--nodes: how many?"),
        ((*MODEL[:-1], "0"), "--nodes: 0 are none"),
        ((*MODEL[:-1], "1"), "no layout fits"),
        ((*MODEL[:-1], "7", *POROS), "= 64 does not divide world size 56"),
        ((*MODEL, "parallel.tensor=16"), "does not divide model.num_key_value_heads"),
        ((*MODEL, *POROS, "training.global_batch_size=500"), "training.global_batch_size (500) is not a multiple of"),
        ((*MODEL, "--cluster", "local"), "no accelerators to plan with"),
        ((*MODEL, "--cluster", "generic-nvidia"), "no [hardware]"),
        ((*MODEL, "--scale", "4096..64"), "is not FIRST..LAST"),
        ((*MODEL, *POROS, "--scale", "1..3"), "divide none of these"),
        ((*MODEL, "--plot", "x.svg"), "add --scale"),
        ((*MODEL, *POROS, "--timeline", "x.svg", "--straggler", "8:2"), "is not STAGE:FACTOR"),
        ((*MODEL, "--price", "-1"), "--price: -1 is out of range"),
        ((*MODEL, "--failures-per-1000-node-days", "nan"), "out of range"),
    ],
)
def test_mistakes_are_one_line_with_the_way_out(capsys, words, error):
    assert error in refuse(capsys, *words)


def test_a_plan_loads_no_torch():
    code = (
        "import sys; from megatron_poro.cli.main import main; "
        f"main({list(MODEL)!r} + ['--search']); sys.exit('torch' in sys.modules or 'megatron' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
