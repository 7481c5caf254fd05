"""The eleven faults of Poro 2's published scripts (LumiOpen/poro2-scripts-dev), each put into a run file or a job script of ours.

Each must be caught and named. What stands here of those scripts are the few words that are wrong in them.
"""

import shutil
from pathlib import Path

import pytest

from data_indexing.manifest import TokenizerRecord
from megatron_poro.preflight.findings import Finding
from tests.preflight.cases import Run, change_script, write_all, write_checkpoint, write_pair, write_start
from tests.runs import REPOSITORY

HEAD = """#!/bin/bash
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --partition=dev-g
#SBATCH -t 00:30:00
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    return write_all(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path, run: Run) -> Run:
    """Poro 2's 70B run file, with the tiny run's token files."""
    shutil.copy(REPOSITORY / "examples" / "runs" / "poro2-70b.toml", run.file)
    shutil.rmtree(run.directory)
    return run


def says(found: list[Finding], check: str, colour: str, *words: str) -> None:
    """One finding of that check has the colour and all the words."""
    there = [finding for finding in found if finding.check == check]
    assert any(finding.colour == colour and all(word in finding.text + finding.source for word in words) for finding in there), (
        there
    )


def with_script(run: Run, text: str) -> list[Finding]:
    path = run.folder / "own.sh"
    path.write_text(HEAD + text)
    return run.check(script=path)


def test_1_every_resubmission_drops_the_optimizer_and_the_warm_up_restarts(run: Run) -> None:
    write_checkpoint(run)
    found = run.check("checkpoint.initial=run/checkpoints/step_00000004")
    says(found, "start.optimizer", "red", "drops Adam's moments", "the warm-up begins again", "lies in run_directory")
    found = with_script(run, "srun python pretrain_gpt.py --split 99,1,0 --load $SAVE --no-load-optim --no-load-rng\n")
    says(found, "script.words", "red", "'--no-load-optim'", "drops Adam's moments", "pretrain-poro2-sbatch.sh")


def test_2_the_default_split_never_trains_on_3_per_cent(run: Run) -> None:
    found = with_script(run, "srun python pretrain_gpt.py --data-path merged\n")
    says(found, "script.words", "red", "pretrain_gpt.py", "969, 30, 1", "3.1 %")
    found = run.check('data.validation=[{name="fi", source="fi", last_sequences=6}]')
    says(found, "heldout.share", "yellow", "source fi", "(2.9%)", "never trained on", "last_sequences")


def test_3_a_length_that_is_not_the_recipes(recipe: Run) -> None:
    found = recipe.check("training.steps=0", "training.tokens=50_000_000_000")
    says(found, "recipe.keys", "yellow", "50,000,", "30% of the 165,498,847,232", "39,458 steps")


def test_3_a_length_that_hides_in_the_job_script(run: Run) -> None:
    change_script(run, ('train "$run_file"', 'train "$run_file" training.steps=0 training.tokens=5000'))
    says(run.check(), "script.run", "red", "training.tokens = 5000", "run.toml says 0")


def test_4_a_save_every_20_steps_and_none_is_deleted(recipe: Run) -> None:
    found = recipe.check("checkpoint.save_every_steps=20", "checkpoint.keep_last=0", "checkpoint.asynchronous=false")
    says(found, "disk.space", "red", "keep_last (0) and save_every_steps (20) keep 1,973 checkpoints of 988 GB", "1.95e+03 TB")
    says(found, "saves.interval", "yellow", "asynchronous (false)", "988 GB", "every 20 steps")


def test_5_nothing_survives_the_time_limit_and_nobody_watches(run: Run) -> None:
    found = with_script(run, "srun poro train run.toml\n")
    says(found, "script.array", "yellow", "no --array", "until somebody submits again")
    says(found, "script.signal", "yellow", "no --signal", "up to checkpoint.save_every_steps (4) steps", "--signal=B:USR1@600")
    says(found, "script.requeue", "yellow", "no --requeue")
    says(found, "script.time", "yellow", "30 minutes", "dev-g")
    says(run.check('observe.wandb_project=""'), "wandb.mode", "yellow", "wandb_project: empty")


def test_5_a_mix_that_survives_in_a_file_name_alone(run: Run) -> None:
    found = run.check('data.sources=[{name="all", path="fi", weight=1.0}]', "data.validation=[]")
    says(found, "mix.sources", "yellow", "all text is one pair", "cannot tell what was read of what")


def test_6_the_launcher_sets_what_hangs_and_what_unsettles_gradients(run: Run) -> None:
    (run.folder / "launcher.sh").write_text("export NCCL_NET_GDR_LEVEL=PHB\nexport NCCL_NCHANNELS_PER_PEER=32\n")
    found = with_script(run, "srun singularity exec image.sif ./launcher.sh poro train run.toml\n")
    says(found, "environment.known_bad", "red", "NCCL_NET_GDR_LEVEL=PHB in", "hang", "laifs-container-recipes/issues/30")
    says(found, "environment.known_bad", "red", "NCCL_NCHANNELS_PER_PEER=32", "gradients become unstable")


def test_7_a_padded_vocabulary_a_shorter_length_and_an_unproved_export(run: Run) -> None:
    for name in ("fi", "en"):
        write_pair(run.folder / name, tokenizer=TokenizerRecord("tiny", "a" * 64, 300), seed=len(name))
    shutil.rmtree(run.folder / "start")
    write_start(run.folder / "start", vocab_size=300, max_position_embeddings=4096)
    found = run.check("model.vocab_size=384", "model.rope_scaling_factor=4.0")
    says(found, "tokens.vocabulary", "red", "model.vocab_size (384) is the tokenizer's 300 with padding rows", "set 300")
    says(found, "start.model", "red", "model.vocab_size: 384 against 300", "rows that pad the vocabulary belong to no model")
    says(found, "start.model", "red", "model.rope_scaling_factor: 4.0 against 8.0")
    says(found, "start.positions", "yellow", "max_position_embeddings (256) is below the 4096")
    text = "pip install transformers\nCHECK_EQUAL_WITH_HF=''\npython convert.py --saver llama_mistral\n"
    found = with_script(run, text)
    says(found, "script.words", "yellow", "'pip install'", "needs a network")
    says(found, "script.words", "yellow", "CHECK_EQUAL_WITH_HF", "nobody compares")
    says(found, "script.words", "red", "--saver llama_mistral", "129,024 instead of 128,256")


def test_8_a_converter_whose_writer_died_ended_well(run: Run) -> None:
    (run.folder / "start" / "__0_0.distcp").unlink()
    says(run.check(), "start.files", "red", "__0_0.distcp is missing, though files.json lists it")
    found = with_script(run, "python tools/checkpoint/convert.py --loader llama --saver mcore --bf16\n")
    says(found, "script.words", "red", "tools/checkpoint/convert.py", "ends with code 0 when its writing process has died")


def test_9_an_fp32_checkpoint_for_a_bf16_run(run: Run) -> None:
    says(run.check("training.precision=bf16"), "start.precision", "yellow", "4.0 bytes a parameter, fp32", "--dtype bf16")
    found = with_script(run, "python convert.py --loader llama_mistral --saver mcore\n")
    says(found, "script.words", "yellow", "fp32, twice the size", "--bf16")


def test_10_a_configuration_that_is_not_there(run: Run) -> None:
    found = with_script(run, "CONFIG=config_helpsteer3.yaml\nsrun poro train run.toml && python dpo.py $CONFIG\n")
    says(found, "script.files", "red", "config_helpsteer3.yaml does not exist")
    says(found, "script.files", "red", "dpo.py does not exist")
    says(run.check("checkpoint.initial=gone"), "start.files", "red", "does not exist")


def test_11_post_training_that_differs_between_sizes_packs_without_a_mask_and_lies_where_only_one_can_read(recipe: Run) -> None:
    found = recipe.check("sft.schedule=cosine")
    says(found, "recipe.post_training", "yellow", "sft.schedule is cosine, linear in recipe poro2-70b and in poro2-8b")
    says(found, "recipe.post_training", "yellow", "sft.packing (true)", "completion mask")
    recipe.file.write_text(recipe.file.read_text().replace('path = "data/', f'path = "{recipe.folder}/data/'))
    says(recipe.check(), "run.paths", "yellow", "data.sources[0].path", "and 3 more are absolute")
