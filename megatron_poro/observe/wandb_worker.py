"""The process that `wandb_process.py` starts: feeds a WandbSink from its input. One that ends without `null` means a kill."""

import contextlib
import json
import os
import sys

from megatron_poro.observe.wandb import ONLINE, Target, WandbSink, first_line
from megatron_poro.observe.wandb_marks import lock_uploads


def main() -> None:
    """Log until the input ends."""
    order = json.loads(sys.stdin.readline())
    target = Target(**order["target"])
    with lock_uploads(target.directory, waits=True) if order["mode"] == ONLINE else contextlib.nullcontext():
        sink = WandbSink(target, order["mode"], order["earlier_bytes"])
        is_whole = False
        for line in sys.stdin:
            if is_whole := (record := json.loads(line)) is None:
                break
            sink.write(record)
        sink.close(failed=not is_whole)


if __name__ == "__main__":
    code = 0
    try:
        main()
    except Exception as error:
        print(f"warning: wandb: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)
        code = 1
    os._exit(code)  # all is said and sent: wandb's own clean-up would wait for a server that does not answer
