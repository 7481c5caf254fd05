"""The command line: one parser per group of commands, user errors as one line and exit code 2."""

import argparse
import sys
from collections.abc import Sequence

from megatron_poro import __version__
from megatron_poro.cli import convert, data, demo, doctor, train
from megatron_poro.errors import USER_ERRORS

USER_ERROR_CODE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `poro`; returns the exit code: 0 done, 2 the user's mistake, 130 interrupted; a bug keeps its traceback and gives 1."""
    args = build_parser().parse_args(arguments)
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


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="poro",
        description="Continued pretraining of open language models: text in, Hugging Face model out.",
        epilog="`poro COMMAND --help` shows a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"megatron_poro {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (demo, data, convert, train, doctor):
        module.add_parser(commands)
    return parser
