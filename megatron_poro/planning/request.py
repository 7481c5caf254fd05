"""What `poro plan` was asked for, as a run file's config: one that exists, or one that is made from a model's name."""

from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from megatron_poro.config import RunConfig, load_run, recipes, save_run, shapes
from megatron_poro.config.load import parse_overrides, resolve
from megatron_poro.config.parse import Plain, Problems, merge
from megatron_poro.config.validate import find_problems
from megatron_poro.errors import ConfigError, LayoutError
from megatron_poro.planning.job import Job, job_of
from megatron_poro.topology import Layout
from megatron_poro.training.start import layout_of

STARTING_BATCH = {"sequence_length": 8192, "global_batch_size": 512}
"""Poro 2's, where `--model` stands alone; overrides change them."""


@dataclass(frozen=True)
class Question:
    """A run file or a model's name, the tokens that go with a name, and overrides."""

    run_file: Path | None = None
    model: str = ""
    tokens: str = ""
    overrides: tuple[str, ...] = ()


def config_of(question: Question) -> RunConfig:
    """The run file's config. Raises ConfigError with one line per problem."""
    if (question.run_file is None) == (not question.model):
        raise ConfigError(["poro plan: give a run file, or --model NAME --tokens N"])
    if question.run_file is not None:
        tokens = (f"training.tokens={_tokens(question.tokens)}", "training.steps=0") if question.tokens else ()
        return load_run(question.run_file, (*tokens, *question.overrides))
    return _config_of_model(question)


def has_layout(question: Question) -> bool:
    """Whether the layout was said: by a run file, or by overrides beside a model's name."""
    return question.run_file is not None or any(word.startswith("parallel.") for word in question.overrides)


def job_on(config: RunConfig, world_size: int) -> Job:
    """The config's job on so many devices. Raises LayoutError or ConfigError where training would."""
    return job_of(config, layout_of(config, world_size))


def unplaced_job(config: RunConfig) -> Job:
    """The config's job before it has a layout, for the search."""
    return job_of(config, Layout())


def placed(config: RunConfig, job: Job) -> RunConfig:
    """The run file's config with a job's layout, micro-batch and recomputation."""
    layout = job.layout
    parallel = replace(
        config.parallel,
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        data=layout.data,
        virtual_stages=layout.virtual_stages,
        context=layout.context,
        sequence=layout.tensor > 1,
    )
    training = replace(config.training, micro_batch_size=job.micro_batch_size, recompute=job.method.recompute)
    return replace(config, parallel=parallel, training=training)


def write_run(config: RunConfig, path: Path) -> None:
    """Write a run file that `poro train` takes. Raises LayoutError where there is one, ConfigError where it would be refused."""
    if path.exists():
        raise LayoutError(f"--write {path}: exists; name a new file")
    if problems := find_problems(config):
        raise ConfigError([f"--write {path}: {problem}" for problem in problems])
    save_run(config, path)


def _config_of_model(question: Question) -> RunConfig:
    if question.model not in shapes():
        raise ConfigError([f"--model: unknown {question.model!r}; known: {', '.join(shapes())}"])
    if not question.tokens:
        raise ConfigError(["--tokens: how many? for example --tokens 165.5e9"])
    problems = Problems()
    overrides = parse_overrides(question.overrides, problems)
    plain = merge(_plain_of_model(question), overrides)
    parallel = plain.get("parallel")
    if isinstance(parallel, dict):
        parallel.setdefault("sequence", parallel.get("tensor", 1) != 1)
    config = resolve(plain, problems)
    if config is None or problems:
        raise ConfigError([f"--model {question.model}: {problem}" for problem in problems])
    return config


def _plain_of_model(question: Question) -> Plain:
    """A run file's keys for a model's name, with placeholders for paths that planning does not read."""
    recipe = recipes()["poro2-70b" if "70b" in question.model else "poro2-8b"]
    longest = shapes()[question.model]["max_position_embeddings"]
    return {
        "run_directory": "run",
        "model": {"shape": question.model},
        "data": {
            "sequence_length": min(STARTING_BATCH["sequence_length"], longest),
            "sources": [{"name": "text", "path": "data/text", "weight": 1.0}],
        },
        "training": {"tokens": _tokens(question.tokens), "global_batch_size": STARTING_BATCH["global_batch_size"]},
        "optimizer": recipe["optimizer"],
        "checkpoint": {"initial": "start", "keep_last": 3},
    }


def _tokens(text: str) -> int:
    try:
        number = Decimal(text.replace("_", ""))
    except InvalidOperation:
        number = Decimal(0)
    if not number.is_finite() or number < 1:
        raise ConfigError([f"--tokens: {text!r} is no number of tokens; write 165.5e9"])
    return int(number)
