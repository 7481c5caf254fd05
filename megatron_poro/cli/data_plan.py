"""`poro data blend` and `poro data ledger`: what a run file reads from its sources, in all and at any point."""

import argparse
import json
from contextlib import closing
from pathlib import Path
from typing import Any


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `blend` and `ledger` to the commands of `poro data`."""
    blend = commands.add_parser("blend", help="each source's tokens, share, epochs and unused tokens in a whole run")
    _add_run_file(blend)
    blend.set_defaults(run=_blend)
    ledger = commands.add_parser("ledger", help="exactly what a run has read from each source at any point")
    _add_run_file(ledger)
    point = ledger.add_mutually_exclusive_group()
    point.add_argument("--samples", type=_count, metavar="N", help="after N samples (default: the whole run)")
    point.add_argument("--tokens", type=_count, metavar="N", help="after the whole samples in N tokens")
    point.add_argument("--step", type=_count, metavar="N", help="after N steps")
    ledger.add_argument("--documents", action="store_true", help="count documents too, which reads the .idx files")
    ledger.set_defaults(run=_ledger)


def _add_run_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_file", metavar="RUN.toml", type=Path, help="the run file; paths in it are relative to its folder")
    parser.add_argument(
        "overrides", metavar="section.key=value", nargs="*", default=[], help="values that replace the run file's (TOML)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")


def _count(text: str) -> int:
    number = int(text.replace("_", ""))
    if number < 0:
        raise ValueError(text)
    return number


def _blend(args: argparse.Namespace) -> int:
    from megatron_poro.config import load_run
    from megatron_poro.config.duration import duration_of
    from megatron_poro.data import TrainingData, build_plan

    config = load_run(args.run_file, args.overrides)
    with closing(TrainingData(config.data)) as data:
        _print(build_plan(data, duration_of(config).num_samples), args)
    return 0


def _ledger(args: argparse.Namespace) -> int:
    from megatron_poro.config import load_run
    from megatron_poro.config.duration import duration_of
    from megatron_poro.data import LEFT_OUT, TrainingData, count_documents, ledger_at, read_windows
    from megatron_poro.errors import ConfigError

    config = load_run(args.run_file, args.overrides)
    windows = read_windows(Path(config.run_directory) / LEFT_OUT)
    if windows.spans and args.documents:
        raise ConfigError([f"--documents: the run left samples out ({LEFT_OUT}), and its documents are not counted around them"])
    duration = duration_of(config)
    num_samples = duration.num_samples if args.step is None else duration.samples_before(args.step)
    if args.samples is not None:
        num_samples = args.samples
    if args.tokens is not None:
        num_samples = args.tokens // config.data.sequence_length
    with closing(TrainingData(config.data)) as data:
        documents = count_documents(data, num_samples) if args.documents else None
        _print(ledger_at(data.order, windows.position_after(num_samples), documents, windows=windows), args)
    return 0


def _print(answer: Any, args: argparse.Namespace) -> None:
    print(json.dumps(answer.as_dict(), indent=2, ensure_ascii=False) if args.json else answer.as_table())
