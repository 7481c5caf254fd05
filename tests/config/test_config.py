import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.config import RunConfig, load_run, recipes, save_run, shapes
from megatron_poro.config.parse import merge
from megatron_poro.config.reference import render_reference
from megatron_poro.errors import ConfigError

RUN = """
recipe = "poro2-8b"
run_directory = "out"
checkpoint.initial = "start"
[[data.sources]]
name = "fi"
path = "data/fi"
weight = 1
"""
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "runs").glob("*.toml"))


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def problems_of(run_file: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run(run_file, overrides)
    return [problem.removeprefix(f"{run_file}: ") for problem in caught.value.problems]


def test_recipe_shape_and_file_are_merged(run_file: Path) -> None:
    config = load_run(run_file)
    assert (config.model.num_layers, config.model.rope_scaling_factor, config.model.max_position_embeddings) == (32, 8.0, 8192)
    assert config.training.steps * config.training.global_batch_size * config.data.sequence_length == 165_498_847_232


def test_paths_are_relative_to_the_run_file_and_in_overrides_to_the_working_directory(run_file: Path) -> None:
    config = load_run(run_file)
    assert config.checkpoint.initial == str(run_file.parent / "start")
    config = load_run(run_file, ["checkpoint.initial=start"])
    assert config.run_directory == str(run_file.parent / "out")
    assert config.data.sources[0].path == str(run_file.parent / "data" / "fi")
    assert config.checkpoint.initial == str(Path.cwd() / "start")


def test_random_weights_are_asked_for_and_never_assumed(run_file: Path, tmp_path: Path) -> None:
    assert load_run(run_file, ["checkpoint.initial=random"]).checkpoint.initial == "random"
    without = tmp_path / "without.toml"
    without.write_text(RUN.replace('checkpoint.initial = "start"', "[checkpoint]"))
    assert any("checkpoint.initial: missing" in problem for problem in problems_of(without))


def test_overrides_win_and_are_typed(run_file: Path) -> None:
    config = load_run(run_file, ["parallel.pipeline=4", "optimizer.learning_rate=1e-4", "observe.wandb_project=poro"])
    assert (config.parallel.pipeline, config.optimizer.learning_rate, config.observe.wandb_project) == (4, 1e-4, "poro")


def test_every_problem_is_reported_at_once_with_its_full_key(run_file: Path) -> None:
    found = problems_of(run_file, "model.hidden_sise=3", "training.precision=fp8", "training.steps=many", "nonsense")
    assert found == [
        "override 'nonsense': not of the form section.key=value",
        "model.hidden_sise: unknown key; did you mean 'hidden_size'?",
        "training.steps: expected a whole number, found 'many'",
        "training.precision: 'fp8' is none of bf16, fp32",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("parallel.tensor=3", "parallel.tensor (3) does not divide model.num_attention_heads (32)"),
        ("parallel.pipeline=5", "= 5 does not divide model.num_layers (32)"),
        ("parallel.context=3", "data.sequence_length (8192) is not a multiple of 2 x parallel.context (3) = 6"),
        ("parallel.virtual_stages=2", "parallel.virtual_stages (2) needs parallel.pipeline above 1"),
        ("training.global_batch_size=0", "training.global_batch_size: 0 is out of range"),
        ("optimizer.learning_rate=-1.0", "optimizer.learning_rate: -1.0 is out of range"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: nan is out of range"),
        ("optimizer.final_learning_rate=1.0", "is above optimizer.learning_rate"),
        ("training.micro_batch_size=7", "is not a multiple of training.micro_batch_size (7)"),
        ("model.shape=llama9", "model.shape: unknown preset 'llama9'"),
        ("recipe=poro9", "recipe: unknown preset 'poro9'"),
        ("model.head_dim=3", "model.head_dim (3) is odd"),
        ("data.sequence_length=0", "data.sequence_length: 0 is out of range"),
        ("training.steps=0", "training.steps and training.tokens: both 0"),
        ("training.tokens=100", "training.steps (39458) and training.tokens (100): one of them"),
        ("training.batch_ramp=[{from_tokens=0, global_batch_size=512}]", "training.batch_ramp[0].from_tokens: 0 is not above 0"),
        (
            "training.batch_ramp=[{from_tokens=9, global_batch_size=2}, {from_tokens=9, global_batch_size=4}]",
            "training.batch_ramp[1].from_tokens: 9 is not above 9",
        ),
        ("training.batch_ramp=[{from_tokens=9, global_batch_size=0}]", "training.batch_ramp[0].global_batch_size: 0 is out"),
        ("training.validate_at_steps=[5, 0]", "training.validate_at_steps[1]: 0 is out of range"),
        ("optimizer.warmup_steps=5", "optimizer.warmup_fraction (0.05), optimizer.warmup_steps (5): give at most one"),
        ("optimizer.schedule=wsd", "optimizer.schedule (wsd): give exactly one of optimizer.decay_fraction"),
        ("optimizer.decay_steps=5", "optimizer.decay_steps (5): read by optimizer.schedule wsd alone, not by cosine"),
        ("optimizer.decay_shape=sqrt", "optimizer.decay_shape (sqrt): read by optimizer.schedule wsd alone"),
        ("optimizer.warmup_fraction=1.0", "optimizer.warmup_fraction (1.0) must be below 1"),
    ],
)
def test_a_broken_rule_names_the_key_and_both_numbers(run_file: Path, override: str, expected: str) -> None:
    assert any(expected in problem for problem in problems_of(run_file, override))


def test_warm_up_and_decay_must_fit_the_run_and_every_batch_its_ranks(run_file: Path) -> None:
    wsd = ["optimizer.schedule=wsd", "optimizer.warmup_fraction=0.0", "training.steps=100"]
    assert load_run(run_file, [*wsd, "optimizer.warmup_steps=60", "optimizer.decay_steps=40"]).optimizer.decay_steps == 40
    found = problems_of(run_file, *wsd, "optimizer.warmup_steps=60", "optimizer.decay_steps=41")
    assert found == [
        "optimizer.warmup_steps (60), optimizer.decay_steps (41): together longer than the run, 100 steps of 419430400 tokens in "
        "all; take less"
    ]
    assert "longer than the run" in problems_of(run_file, *wsd, "optimizer.warmup_tokens=500000000", "optimizer.decay_steps=1")[0]
    ramp = "training.batch_ramp=[{from_tokens=100, global_batch_size=514}]"
    found = problems_of(run_file, ramp, "training.micro_batch_size=4")
    assert found == [
        "training.batch_ramp[0].global_batch_size (514) is not a multiple of training.micro_batch_size (4) x data ranks (1) = 4"
    ]


def test_sequences_are_cut_where_the_layout_can_cut_them(run_file: Path) -> None:
    found = problems_of(run_file, "parallel.context=2", "data.sequence_length=8188", "parallel.tensor=4")
    assert found == ["data.sequence_length (8188) / parallel.context (2) = 4094 is not a multiple of parallel.tensor (4)"]
    found = problems_of(run_file, "parallel.context=2", "data.reset_attention_mask=true")
    assert found[0].startswith("data.reset_attention_mask (true) and parallel.context (2): documents cannot be cut")


def test_a_missing_file_and_bad_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: no such run file"):
        load_run(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad.toml: not valid TOML: .*line 1"):
        load_run(tmp_path / "bad.toml")


def test_the_saved_config_is_a_run_file_that_gives_the_same_run(run_file: Path, tmp_path: Path) -> None:
    config = load_run(run_file, ["data.stages=[{from_tokens=8192, weights={fi=1.0}}]"])
    save_run(config, tmp_path / "resolved.toml")
    assert load_run(tmp_path / "resolved.toml") == config


@pytest.mark.parametrize("name", shapes())
def test_every_shape_is_a_model(name: str, run_file: Path) -> None:
    assert load_run(run_file, [f"model.shape={name}", "parallel.tensor=1", "parallel.sequence=false"]).model.shape == name


def test_every_recipe_carries_the_numbers_of_poro_2() -> None:
    wanted: dict[str, dict[str, Any]] = {
        "poro2-8b": {
            "parallel": {"tensor": 2, "pipeline": 1},
            "optimizer": {"learning_rate": 3e-4},
            "sft": {"global_batch_size": 64},
        },
        "poro2-70b": {
            "parallel": {"tensor": 8, "pipeline": 8},
            "optimizer": {"learning_rate": 1.5e-4},
            "sft": {"global_batch_size": 128},
        },
    }
    assert list(recipes()) == sorted(wanted)
    for name, values in wanted.items():
        recipe = recipes()[name]
        assert merge(recipe, values) == recipe
        assert recipe["optimizer"]["adam_epsilon"] == 1e-5
        assert (recipe["dpo"]["beta"], recipe["dpo"]["epochs"], recipe["dpo"]["learning_rate"]) == (0.01, 3, 5e-7)
        assert (recipe["sft"]["epochs"], recipe["sft"]["learning_rate"], recipe["sft"]["warmup_fraction"]) == (2, 5e-6, 0.03)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_run_file_is_valid(path: Path) -> None:
    assert isinstance(load_run(path), RunConfig)


def test_the_run_file_in_the_readme_is_poro_2(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (tmp_path / "run.toml").write_text(readme.partition("```toml\n")[2].partition("```")[0])
    config = load_run(tmp_path / "run.toml")
    assert [source.weight for source in config.data.sources] == [0.3, 0.3, 0.3, 0.1]
    assert (config.parallel.tensor, config.training.steps) == (2, 39458)


def test_the_reference_lists_every_key() -> None:
    text = render_reference()
    config = tomllib.loads(RUN)
    assert config["recipe"] == "poro2-8b"
    for key in ("steps", "tensor", "[[data.sources]]", "from_tokens", "wandb_project", "beta", "allow_changed"):
        assert key in text


def test_the_package_and_its_config_load_no_torch() -> None:
    program = "import sys, megatron_poro, megatron_poro.config, megatron_poro.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
