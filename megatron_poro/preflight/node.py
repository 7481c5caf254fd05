"""`poro check --node`: this node before it trains. Devices and links as an element looks at them, and rates against expected ones.

    srun --nodes=4 --ntasks-per-node=1 poro check RUN.toml --node --cluster lumi

A bad node gives exit code 2, and its last line is `HOST REASON`, for an exclude list.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_poro.config import load_run
from megatron_poro.errors import PoroError
from megatron_poro.preflight.check import Question, run_guarded
from megatron_poro.preflight.disk import existing_folder
from megatron_poro.preflight.findings import RED, Finding, green, not_checked, red, yellow
from megatron_poro.slurm.nodes import Measurement, judge, measure, measure_rates, node_name
from megatron_poro.slurm.profile import Profile, load_profile

EXPECTED_TFLOPS = {
    "MI250X": 125.0,
    "MI300X": 668.0,
    "MI325X": 785.0,
    "A100": 271.0,
    "H100": 794.0,
    "H200": 794.0,
    "GH200": 813.0,
}
"""What dense bf16 products reach on a device, published: the finder of maximum achievable matmul FLOPS of stas00/ml-engineering;
AxoNN (SC24) for a GCD of an MI250X. H200 is the H100's chip."""
LEAST_SHARE = 0.85
"""Of the expected rate. AMD's node screen (Primus) fails an MI300X below 600 of 668."""
PRODUCT_SIZE = 8192
FILE_BYTES = 256 * 2**20
SLOW_MB, DEAD_MB = 200.0, 20.0
"""A rank's share of a checkpoint of 14 GB takes a minute at the first, twelve at the second."""


def check_node(question: Question) -> list[Finding]:
    """What this node has, and how fast. Loads torch."""
    config = load_run(question.run_file, question.overrides)
    profile = load_profile(question.cluster or "local")
    return [
        *run_guarded("node.devices", lambda: _check_devices(profile)),
        *run_guarded("node.rate", _check_rate),
        *run_guarded(
            "node.shared_disk", lambda: _check_disk("node.shared_disk", existing_folder(Path(config.run_directory).absolute()))
        ),
        *run_guarded("node.local_disk", lambda: _check_disk("node.local_disk", Path(tempfile.gettempdir()))),
    ]


def exclude_line(found: Sequence[Finding]) -> str:
    """This node's name and what is wrong with it; empty where nothing is."""
    bad = [finding.text for finding in found if finding.colour == RED]
    return f"{node_name()} {'; '.join(bad)}" if bad else ""


def _check_devices(profile: Profile) -> Iterator[Finding]:
    """Count, memory, links, free space of the node's own disk: by the rules that an element has for its nodes."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), profile)
    reason = judge({found["node"]: found}, profile.name).get(found["node"], "")
    yield red("node.devices", reason) if reason else green("node.devices", _words(found, profile))


def _words(found: Measurement, profile: Profile) -> str:
    memory = f" of {min(found['memory_gb']):.0f} GB" if found["memory_gb"] else ""
    links = f", up: {', '.join(profile.node_check.links)}" if profile.node_check.links else ""
    return f"{found['devices']} devices{memory}{links}, {found['local_disk_gb']:.1f} GB free on its own disk"


def _check_rate() -> Iterator[Finding]:
    """Large products on each device, one after the other, against what such devices reach elsewhere."""
    for device, rate in measure_rates(PRODUCT_SIZE):
        yield judge_rate(device, rate)


def judge_rate(device: str, rate: float) -> Finding:
    """A device's rate against the expected one of its kind."""
    if device == "cpu":
        return green("node.rate", f"no accelerator; products reach {rate:.3f} TFLOP/s in fp32 on the CPU")
    names = [name for name in EXPECTED_TFLOPS if name in device]
    if not names:
        return not_checked(
            "node.rate", f"{device}: products of {PRODUCT_SIZE} reach {rate:.0f} TFLOP/s; what such devices reach is not known here"
        )
    expected = EXPECTED_TFLOPS[max(names, key=len)]
    text = f"{device}: {rate:.0f} of {expected:.0f} TFLOP/s ({rate / expected:.0%})"
    if rate < LEAST_SHARE * expected:
        return red("node.rate", f"{text}, below {LEAST_SHARE:.0%}: it is throttled, shared or broken")
    return green("node.rate", text)


def _check_disk(check: str, folder: Path) -> Iterator[Finding]:
    """Write a file, flush it, drop it from memory, read it back."""
    try:
        writing, reading = measure_disk(folder)
    except OSError as error:
        raise PoroError(f"{folder} cannot be written: {error.strerror}") from None
    text = f"{folder}: {writing:,.0f} MB/s written, {reading:,.0f} MB/s read"
    if min(writing, reading) < DEAD_MB:
        yield red(check, f"{text}, below {DEAD_MB:g}")
    elif min(writing, reading) < SLOW_MB:
        yield yellow(check, f"{text}, below {SLOW_MB:g}: saves will take long")
    else:
        yield green(check, text)


def measure_disk(folder: Path, num_bytes: int = FILE_BYTES) -> tuple[float, float]:
    """MB/s of writing and reading a file of `num_bytes` in the folder, past the page cache as far as it lets go."""
    block = os.urandom(2**20) * 8
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".poro-check-", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(max(num_bytes // len(block), 1)):
            file.write(block)
        os.fsync(file.fileno())
        written = time.perf_counter()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(len(block)):
            pass
        done = time.perf_counter()
        size = file.tell() / 1e6
    return size / max(written - began, 1e-9), size / max(done - start, 1e-9)
