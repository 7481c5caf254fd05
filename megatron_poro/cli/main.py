"""The command line: one parser per group of commands, user errors as one line and exit code 2."""

import argparse
import signal
import sys
from collections.abc import Sequence

from megatron_poro import __version__
from megatron_poro.cli import check, convert, data, demo, doctor, launch, plan, report, train, wandb, watch
from megatron_poro.errors import USER_ERRORS

USER_ERROR_CODE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `poro`; returns the exit code: 0 done, 2 the user's mistake, 130 interrupted; a bug keeps its traceback and gives 1."""
    args = _parse(arguments)
    signal.signal(signal.SIGTERM, _end)
    try:
        return int(args.run(args))
    except USER_ERRORS as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return USER_ERROR_CODE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno is None:
            raise
        print(f"error: {error.filename or 'input or output'}: {error.strerror}", file=sys.stderr)
        return USER_ERROR_CODE


def _end(number: int, frame: object) -> None:
    """End through the clean-up of every `with` and `finally`, so that no temporary file stays."""
    sys.exit(128 + number)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; overrides (`section.key=value`) may also stand after options, which argparse alone does not take."""
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(args, "overrides") and all("=" in word and not word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="poro",
        description="Continued pretraining of open language models: text in, Hugging Face model out.",
        epilog="`poro COMMAND --help` shows a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"megatron_poro {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (demo, data, convert, plan, train, check, launch, watch, report, wandb, doctor):
        module.add_parser(commands)
    return parser
