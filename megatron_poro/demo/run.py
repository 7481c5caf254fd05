"""The steps of the demo: each is a command that a user would type, printed before it runs."""

import importlib.util
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from data_indexing.reader import IndexedReader
from megatron_poro.config import shapes
from megatron_poro.config.load import resolve
from megatron_poro.config.parse import Problems
from megatron_poro.demo.base import train_tokenizer, write_random_llama
from megatron_poro.demo.corpus import DOMAINS, check_corpus, write_corpus
from megatron_poro.demo.summary import FULL_STEPS, summarise
from megatron_poro.errors import ConfigError, PoroError

VOCAB_SIZE = 2048
SEQUENCE_LENGTH = 128
VALIDATION_SEQUENCES = 32
GLOBAL_BATCH_SIZE = 32
MIN_STEPS = 2
BASE_MIX = {"en": 0.5, "code": 0.5}
CONTINUED_MIX = {"fi": 0.3, "en": 0.3, "code": 0.3, "math": 0.1}


@dataclass(frozen=True)
class DemoOptions:
    """`corpus` None means the built-in text; `steps` is the length of either training, None the full number."""

    out: Path
    corpus: Path | None = None
    steps: int | None = None


def run_demo(options: DemoOptions) -> int:
    """Text in, continued-pretrained Hugging Face model out; returns 0 when every promise of the summary held, else 1."""
    started = time.monotonic()
    out = options.out.resolve()
    if options.corpus:
        check_corpus(options.corpus)
    if out.exists() and any(out.iterdir()):
        raise PoroError(f"--out {out}: not empty; remove it or give another folder with --out")
    corpus = options.corpus.resolve() if options.corpus else out / "corpus"
    steps = FULL_STEPS if options.steps is None else options.steps
    if steps < MIN_STEPS:
        raise PoroError(f"--steps {steps}: at least {MIN_STEPS}, since the second training is stopped half way")
    _prepare(options, out, corpus, steps=steps)
    _tokenize(out, corpus)
    _pretrain_base(out, steps)
    _continue_pretraining(out, steps)
    _look_back(out)
    return summarise(out, steps=steps, seconds=time.monotonic() - started)


def _prepare(options: DemoOptions, out: Path, corpus: Path, *, steps: int) -> None:
    _say("1. Four domains of text, a tokenizer, and a random Llama as a Hugging Face directory")
    if not options.corpus:
        write_corpus(corpus)
    tokenizer = train_tokenizer(corpus, VOCAB_SIZE)
    _write_run_file(out, "base", BASE_MIX, steps, initial="random-megatron")
    config = _write_run_file(out, "continued", CONTINUED_MIX, steps, initial="base-megatron")
    problems = Problems()
    resolved = resolve(config, problems)
    if resolved is None or problems:
        raise ConfigError(problems)
    write_random_llama(out / "random-hf", resolved.model, tokenizer, seed=1)


def _tokenize(out: Path, corpus: Path) -> None:
    _say("2. Text to Megatron .bin/.idx files: tokenize, merge with a shuffle of the documents, verify")
    (out / "data").mkdir()
    for domain in DOMAINS:
        tokens = f"{out}/data/{domain}-tokens"
        _poro("data", "tokenize", f"{corpus}/{domain}.jsonl", "--tokenizer", f"{out}/random-hf", "--output", tokens)
        _check_size(tokens, domain)
        _poro("data", "merge", tokens, "--output", f"{out}/data/{domain}", "--shuffle", "1")
    _poro("data", "verify", *(f"{out}/data/{domain}" for domain in DOMAINS), "--tokenizer", f"{out}/random-hf")


def _check_size(tokens: str, domain: str) -> None:
    """Raise PoroError when a domain is too small to hold anything out of it."""
    needed = 2 * VALIDATION_SEQUENCES * SEQUENCE_LENGTH
    with IndexedReader(tokens) as reader:
        if reader.num_tokens < needed:
            raise PoroError(
                f"{domain}.jsonl: too small, {reader.num_tokens} tokens; the demo needs at least {needed} of each domain"
            )


def _pretrain_base(out: Path, steps: int) -> None:
    _say("3. A first pretraining on English and code: the base model")
    _poro("convert", "to-megatron", f"{out}/random-hf", f"{out}/random-megatron")
    _poro("train", f"{out}/base.toml")
    last = f"{out}/runs/base/checkpoints/step_{steps:08d}"
    _poro("convert", "to-hf", last, f"{out}/base-hf", "--reference", f"{out}/random-hf")


def _continue_pretraining(out: Path, steps: int) -> None:
    _say("4. Continued pretraining of the base with Finnish: stopped half way, resumed, exported")
    _poro("convert", "to-megatron", f"{out}/base-hf", f"{out}/base-megatron")
    _poro("train", f"{out}/continued.toml", f"--stop-after={steps // 2}")
    _poro("train", f"{out}/continued.toml")
    last = f"{out}/runs/continued/checkpoints/step_{steps:08d}"
    _poro("convert", "to-hf", last, f"{out}/final-hf", "--reference", f"{out}/base-hf")
    _poro("convert", "verify", last, f"{out}/final-hf")


def _look_back(out: Path) -> None:
    _say("5. Where the hours went, and the report")
    _poro("goodput", f"{out}/runs/continued")
    if importlib.util.find_spec("bokeh"):
        _poro("report", f"{out}/runs/continued", "-o", f"{out}/report.html")
    else:
        print("no report: bokeh is not installed (pip install 'megatron_poro[report]')", flush=True)


def _write_run_file(out: Path, name: str, mix: dict[str, float], steps: int, *, initial: str) -> dict[str, Any]:
    """A run file for four processes, TP2 x PP2; returns it with absolute paths."""
    out.mkdir(parents=True, exist_ok=True)
    run = {
        "run_directory": f"runs/{name}",
        "model": {**shapes()["tiny"], "vocab_size": VOCAB_SIZE},
        "parallel": {"tensor": 2, "pipeline": 2, "sequence": True},
        "data": {
            "sequence_length": SEQUENCE_LENGTH,
            "sources": [{"name": d, "path": f"data/{d}", "weight": mix.get(d, 0.0)} for d in DOMAINS],
            "validation": [{"name": d, "source": d, "last_sequences": VALIDATION_SEQUENCES} for d in DOMAINS],
        },
        "training": {
            "steps": steps,
            "global_batch_size": GLOBAL_BATCH_SIZE,
            "micro_batch_size": 8,
            "precision": "fp32",
            "validate_every_steps": max(steps // 4, 1),
        },
        "optimizer": {
            "learning_rate": 2e-3,
            "final_learning_rate": 2e-5,
            "warmup_fraction": 0.05,
            "adam_epsilon": 1e-8,
        },
        "checkpoint": {"initial": initial, "save_every_steps": max(steps // 2, 1), "keep_last": 2},
        "observe": {"log_every_steps": 1},
    }
    (out / f"{name}.toml").write_text(tomli_w.dumps(run), encoding="utf-8")
    return run


def _say(heading: str) -> None:
    print(f"\n=== {heading}", flush=True)


def _poro(*words: str) -> None:
    """Print a command and run it; raise PoroError when it fails."""
    print(f"\n$ {shlex.join(('poro', *words))}", flush=True)
    code = subprocess.run([sys.executable, "-m", "megatron_poro", *words], check=False).returncode
    if code:
        raise PoroError(f"the command above ended with exit code {code}; mend what it says and start the demo again")
