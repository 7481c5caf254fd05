"""A run says what it does as far as it can: a full disk behind its output costs words, not the run."""

import subprocess
import sys

PROGRAM = "from megatron_poro.training.screen import keep_talking; keep_talking(); "


def test_output_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    with open("/dev/full", "w") as full:
        said = (
            "import sys; print('out', flush=True); print('error', file=sys.stderr, flush=True); sys.stdout.writelines(['a', 'b'])"
        )
        assert subprocess.run([sys.executable, "-c", PROGRAM + said], stdout=full, stderr=full, check=False).returncode == 0


def test_output_that_can_be_written_is_written() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM + "print('out')"], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("out\n", "")
