"""What may be wrong with a run, one entry each: what is done to a good run, and what the check must then say."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_indexing.manifest import InputFile, Policy, TokenizerRecord
from data_indexing.reader import IndexedReader
from data_indexing.writer import IndexedWriter
from tests.preflight.cases import BOS, EOD, Run, change_script, write_checkpoint, write_metrics, write_pair, write_start
from tests.runs import REPOSITORY

VALIDATION = 'data.validation=[{name="held", path="held"}]'


def nothing(run: Run) -> None:
    pass


@dataclass(frozen=True)
class Break:
    """What is done to a good run, and what the check must then say."""

    check: str
    colour: str
    says: str
    overrides: tuple[str, ...] = ()
    before: Callable[[Run], Any] = nothing
    question: dict[str, Any] = field(default_factory=dict)


def remove(*names: str) -> Callable[[Run], None]:
    def work(run: Run) -> None:
        for name in names:
            (run.folder / name).unlink()

    return work


def script(*changes: tuple[str, str]) -> Callable[[Run], None]:
    return lambda run: change_script(run, *changes)


def pair(name: str, **changes: Any) -> Callable[[Run], None]:
    return lambda run: write_pair(run.folder / name, **changes)


def start(**changes: Any) -> Callable[[Run], None]:
    def work(run: Run) -> None:
        shutil.rmtree(run.folder / "start")
        write_start(run.folder / "start", **changes)

    return work


def resumed(**changes: Any) -> Callable[[Run], Path]:
    return lambda run: write_checkpoint(run, **changes)


def cut(name: str) -> Callable[[Run], None]:
    return lambda run: os.truncate(run.folder / name, 100)


def without_rates(run: Run) -> None:
    """Nothing was measured, and the cluster has nothing that the planner could go by."""
    (run.directory / "metrics.jsonl").unlink()
    cluster = run.folder / "cluster.toml"
    cluster.write_text(cluster.read_text().replace('base = "lumi"', 'base = "generic-nvidia"'))


def held_out(**changes: Any) -> Callable[[Run], None]:
    return pair("held", **{"seed": 7, **changes})


def damaged_newest(run: Run) -> None:
    write_checkpoint(run, 4)
    os.truncate(write_checkpoint(run, 8) / "__0_0.distcp", 10)


def first_documents_of_fi(run: Run) -> None:
    """A held-out pair of some of a source's documents, in another number type."""
    held_out()(run)
    with IndexedReader(run.folder / "fi") as reader, IndexedWriter(run.folder / "some", np.dtype(np.int32)) as writer:
        for n in range(7):
            writer.add_document(reader.document(n).astype(np.int32))
    for end in ("bin", "idx"):
        (run.folder / f"some.{end}").rename(run.folder / f"held.{end}")


def foreign(dtype: Any, token: int) -> Callable[[Run], None]:
    """A pair of another number type, without a manifest."""

    def work(run: Run) -> None:
        (run.folder / "fi.json").unlink()
        with IndexedWriter(run.folder / "fi", np.dtype(dtype)) as writer:
            writer.add_document(np.full(9000, token, dtype))

    return work


def model_tokenizer(run: Run) -> None:
    (run.folder / "hf").mkdir()
    shutil.copy(REPOSITORY / "tests" / "cli" / "tokenizer.json", run.folder / "hf" / "tokenizer.json")


FI = InputFile("fi.jsonl", 1000, "b" * 64)
BREAKS = [
    Break("run.file", "red", r"stpes: unknown key; did you mean 'steps'", ("training.stpes=3",)),
    Break("run.file", "red", r"parallel.tensor \(3\) does not divide model.num_attention_heads \(8\)", ("parallel.tensor=3",)),
    Break("run.file", "red", r"virtual_stages \(1\) = 3 does not divide model.num_layers \(4\)", ("parallel.pipeline=3",)),
    Break(
        "run.file", "red", r"final_learning_rate \(1.0\) is above optimizer.learning_rate", ("optimizer.final_learning_rate=1.0",)
    ),
    Break("run.allow", "red", r"'mix.epoch' is no check", ('checks.allow=["mix.epoch"]',)),
    Break("data.files", "red", r"data.sources\[0\] \(fi\): .*fi.idx: No such file", before=remove("fi.idx")),
    Break("data.files", "red", r"fi.bin: the .idx describes \d+ bytes, found 100", before=cut("fi.bin")),
    Break("data.manifests", "yellow", r"fi.json is missing", before=remove("fi.json")),
    Break("data.manifests", "red", r"sha256 of fi.bin", before=pair("fi", bin_sha256="0" * 64)),
    Break("data.manifests", "red", r"fi.json: .*restore the manifest or remove it", before=cut("fi.json")),
    Break("tokens.tokenizer", "yellow", r"no manifest names the tokenizer of data.sources\[1\] \(en\)", before=remove("en.json")),
    Break("tokens.tokenizer", "red", r"different tokenizers", before=pair("en", tokenizer=TokenizerRecord("other", "c" * 64, 256))),
    Break("tokens.tokenizer", "red", r"\(fi\) by tiny, another tokenizer than hf's beside", before=model_tokenizer),
    Break(
        "tokens.vocabulary",
        "red",
        r"\(256\) is below the 300 ids",
        before=pair("en", tokenizer=TokenizerRecord("tiny", "a" * 64, 300)),
    ),
    Break("tokens.vocabulary", "yellow", r"has 44 rows", ("model.vocab_size=300",)),
    Break("tokens.ids", "red", r"holds id 2\d\d, beyond model.vocab_size \(200\)", ("model.vocab_size=200",)),
    Break("tokens.policy", "red", r"130 of the first 130 documents have no BOS 1", before=pair("fi", ends=(5, EOD))),
    Break("tokens.policy", "yellow", r"no token ends a document", before=pair("fi", policy=Policy("document", BOS, "none", None))),
    Break("tokens.ids", "red", r"fi\): holds id -5, beyond", before=foreign(np.int32, -5)),
    Break("tokens.ids", "red", r"no whole ones", before=foreign(np.float32, 1)),
    Break(
        "tokens.ids",
        "yellow",
        r"its number type ends at 65535, model.vocab_size is 70000",
        ("model.vocab_size=70000",),
        before=remove("fi.json"),
    ),
    Break(
        "tokens.policy",
        "red",
        r"eos_token_id is 9 in the token files, 2 in",
        before=pair("fi", ends=(1, 9), policy=Policy("document", 1, "document", 9)),
    ),
    Break(
        "mix.length",
        "yellow",
        r"source en: the run reads nothing",
        ('data.sources=[{name="fi", path="fi", weight=1.0}, {name="en", path="en", weight=0.0}]',),
    ),
    Break("mix.epochs", "yellow", r"data.sources\[1\] \(en\): .* epochs", ("training.steps=100",)),
    Break("mix.epochs", "red", r"\d epochs, above 4; lower its weight.*allow mix.epochs", ("training.steps=400",)),
    Break("mix.sources", "yellow", r"all text is one pair", ('data.sources=[{name="fi", path="fi", weight=1.0}]',)),
    Break(
        "mix.sources",
        "red",
        r"fi and en are the same text",
        before=lambda run: [shutil.copy(run.folder / f"fi.{end}", run.folder / f"en.{end}") for end in ("bin", "idx", "json")],
    ),
    Break("heldout.sets", "yellow", r"empty", ("data.validation=[]",)),
    Break(
        "heldout.disjoint",
        "red",
        r"holds the text of data.sources\[0\]",
        (VALIDATION,),
        before=lambda run: [shutil.copy(run.folder / f"fi.{end}", run.folder / f"held.{end}") for end in ("bin", "idx", "json")],
    ),
    Break(
        "heldout.disjoint",
        "red",
        r"both made from fi.jsonl",
        (VALIDATION,),
        before=lambda run: (held_out(inputs=(FI,))(run), pair("fi", inputs=(FI,))(run)),
    ),
    Break(
        "heldout.disjoint",
        "yellow",
        r"not checked: where data.validation\[0\] \(held\) came from",
        (VALIDATION,),
        before=lambda run: (held_out()(run), remove("held.json")(run)),
    ),
    Break(
        "heldout.documents",
        "red",
        r"\(held\): 7 of its documents stand in source fi too",
        (VALIDATION,),
        before=first_documents_of_fi,
    ),
    Break("heldout.share", "yellow", r"above 1%", ('data.validation=[{name="fi", source="fi", last_sequences=50}]',)),
    Break(
        "layout.processes",
        "red",
        r"parallel.tensor \(4\) x parallel.pipeline \(4\) = 16 does not divide world size 8",
        ("parallel.tensor=4", "parallel.pipeline=4"),
    ),
    Break("layout.processes", "red", r"global_batch_size \(12\) is not a multiple of", ("training.global_batch_size=12",)),
    Break(
        "layout.nodes",
        "yellow",
        r"parallel.tensor \(4\) spans nodes of 2 devices",
        ("parallel.tensor=4",),
        before=script(("--ntasks-per-node=8", "--ntasks-per-node=2")),
    ),
    Break("layout.bubble", "yellow", r"2 microbatches for parallel.pipeline \(2\): stages wait 33%", ("parallel.pipeline=2",)),
    Break(
        "layout.memory",
        "red",
        r"a rank needs 1[0-9]{3}.* GB of the 64 GB",
        ("model.hidden_size=65536", "model.ffn_hidden_size=262144", "training.precision=bf16"),
    ),
    Break("start.files", "red", r"does not exist; make it with `poro convert", ("checkpoint.initial=nowhere",)),
    Break("start.files", "red", r"__0_0.distcp has 100 bytes, files.json says", before=cut("start/__0_0.distcp")),
    Break("start.files", "red", r"no .metadata", before=remove("start/.metadata")),
    Break("start.files", "yellow", r"no files.json", before=remove("start/files.json")),
    Break("start.proof", "yellow", r"converted without proof", before=start(proved=False)),
    Break("start.proof", "yellow", r"has no conversion.json", before=remove("start/conversion.json")),
    Break("start.model", "red", r"model.rope_theta: 500000.0 against 10000.0", before=start(rope_theta=10000.0)),
    Break("start.model", "yellow", r"no model.json", before=remove("start/model.json")),
    Break("start.positions", "yellow", r"\(256\) is below the 512", before=start(max_position_embeddings=512)),
    Break("start.precision", "yellow", r"4.0 bytes a parameter, fp32", ("training.precision=bf16",)),
    Break(
        "start.optimizer", "red", r"drops Adam's moments", ("checkpoint.initial=run/checkpoints/step_00000004",), before=resumed()
    ),
    Break(
        "start.optimizer",
        "yellow",
        r"training checkpoint of step 7",
        before=lambda run: (run.folder / "start" / "state.json").write_text('{"step": 7}'),
    ),
    Break("resume.checkpoint", "red", r"step_00000008 is not whole .* goes back to step_00000004", before=damaged_newest),
    Break("resume.checkpoint", "yellow", r"the run is done", before=resumed(step=12)),
    Break(
        "resume.contract",
        "red",
        r"optimizer.learning_rate was 0.003, is 0.001",
        ("optimizer.learning_rate=1e-3",),
        before=resumed(),
    ),
    Break(
        "resume.contract",
        "yellow",
        r"allow_changed lets optimizer",
        ('checkpoint.allow_changed=["optimizer"]', "optimizer.learning_rate=1e-3"),
        before=resumed(),
    ),
    Break("resume.optimizer", "red", r"holds 4.0 bytes a parameter, weights and optimizer are 12", before=resumed(width=4)),
    Break("disk.writable", "red", r"rocm-7.1.sif is a file, not a folder", ("run_directory=rocm-7.1.sif/run",)),
    Break(
        "disk.space",
        "red",
        r"keep 100,000,000,000 checkpoints",
        ("training.steps=100_000_000_000", "checkpoint.save_every_steps=1", "checkpoint.keep_last=0"),
    ),
    Break("disk.space", "yellow", r"keep_last = 0 keeps all", ("training.steps=100", "checkpoint.keep_last=0")),
    Break("saves.interval", "yellow", r"save_every_steps \(0\)", ("checkpoint.save_every_steps=0",)),
    Break("saves.interval", "yellow", r"asynchronous \(false\)", ("checkpoint.asynchronous=false",)),
    Break("saves.time", "red", r"a save takes 500 s", before=lambda run: write_metrics(run, save_seconds=500.0)),
    Break(
        "saves.time",
        "yellow",
        r"training waits: 50%",
        ("checkpoint.asynchronous=false",),
        before=lambda run: write_metrics(run, save_seconds=20.0),
    ),
    Break("saves.time", "yellow", r"not checked", before=without_rates),
    Break(
        "saves.limit",
        "yellow",
        r"69.4 elements for the 100,000 steps that are left, and --array has 3",
        ("training.steps=100_000",),
        before=lambda run: write_metrics(run, step_seconds=120.0),
    ),
    Break("saves.limit", "red", r"never takes one", before=lambda run: write_metrics(run, step_seconds=1e6)),
    Break("saves.limit", "yellow", r"saves nothing; save more often", before=lambda run: write_metrics(run, step_seconds=1e5)),
    Break(
        "saves.lead", "red", r"less than a step and a save take; give", before=lambda run: write_metrics(run, save_seconds=1000.0)
    ),
    Break("saves.lead", "yellow", r"s are safe", before=script(("USR1@95 ", "USR1@20 "))),
    Break("schedule.warmup", "yellow", r"are 0", ("optimizer.warmup_fraction=0.0",)),
    Break("schedule.warmup", "yellow", r"rises for 50%", ("optimizer.warmup_fraction=0.5",)),
    Break("schedule.decay", "yellow", r"constant", ("optimizer.schedule=constant",)),
    Break("schedule.decay", "yellow", r"67% of the peak", ("optimizer.final_learning_rate=2e-3",)),
    Break(
        "schedule.points",
        "red",
        r"data.stages\[0\].from_tokens \(64,000\) is never reached",
        ("data.stages=[{from_tokens=64000, weights={fi=1.0}}]",),
    ),
    Break("schedule.points", "yellow", r"save_every_steps \(100\) is never reached", ("checkpoint.save_every_steps=100",)),
    Break("schedule.points", "yellow", r"keep_every_steps \(5\) is no multiple", ("checkpoint.keep_every_steps=5",)),
    Break("script.files", "red", r"other.toml does not exist", before=script(('train "$run_file"', "train other.toml"))),
    Break(
        "script.run", "red", r"trains other.toml, which does not exist", before=script(('train "$run_file"', "train other.toml"))
    ),
    Break(
        "script.run", "red", r"trains with optimizer.learning_rate = 0.003, run.toml says 0.001", ("optimizer.learning_rate=1e-3",)
    ),
    Break("script.run", "yellow", r"no `poro train", before=script(("megatron_poro train", "something else"))),
    Break("script.run", "yellow", r"only the job knows", before=script(('train "$run_file"', 'train "$UNKNOWN"'))),
    Break("script.size", "red", r"--nodes=1, but 2 were asked for", question={"nodes": 2}),
    Break(
        "script.size",
        "yellow",
        r"--ntasks-per-node=4, a node has 8 MI250X",
        before=script(("--ntasks-per-node=8", "--ntasks-per-node=4")),
    ),
    Break(
        "script.size", "red", r"--nodes=2000, partition standard-g has at most 1024", before=script(("--nodes=1 ", "--nodes=2000 "))
    ),
    Break(
        "script.time",
        "red",
        r"is 10080 minutes, partition standard-g allows 2880",
        before=script(("--time=2-00:00:00", "--time=7-00:00:00")),
    ),
    Break("script.time", "red", r"\(none\) is no time limit", before=script(("--time=2-00:00:00", "--comment=x"))),
    Break("script.array", "red", r"side by side", before=script(("%1", ""))),
    Break(
        "script.account",
        "red",
        r"no --account, and SBATCH_ACCOUNT is not set: .* refuses",
        before=script(("--account=", "--comment=")),
    ),
    Break("script.signal", "red", r"has no trap", before=script(("trap ", ": "))),
    Break("script.requeue", "yellow", r"overwrites the log", before=script(("--open-mode=append", "--open-mode=truncate"))),
    Break(
        "script.words",
        "yellow",
        r"pip install.*needs a network",
        before=script(("set -uo pipefail", "set -uo pipefail\npip install transformers")),
    ),
    Break(
        "environment.known_bad",
        "red",
        r"NCCL_NET_GDR_LEVEL=PHB in this environment: .*hang",
        question={"variables": {"NCCL_NET_GDR_LEVEL": "PHB"}},
    ),
    Break(
        "environment.profile",
        "yellow",
        r"sets NCCL_SOCKET_IFNAME=eth0, profile",
        before=script(("hsn0,hsn1,hsn2,hsn3   #", "eth0   #")),
    ),
    Break(
        "environment.profile",
        "yellow",
        r"does not set HSA_ENABLE_SDMA=0, as profile",
        before=script(("export HSA_ENABLE_SDMA", ": dropped")),
    ),
    Break("wandb.mode", "yellow", r"wandb_project: empty", ('observe.wandb_project=""',)),
]
