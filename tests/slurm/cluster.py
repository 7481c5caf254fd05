"""A Slurm of a test session's own, and what is asked of it."""

import os
import re
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_PROGRAM = Path(__file__).resolve().parents[2] / "tools" / "cluster.sh"
_ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"})
_OF_SLURM = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_")


class Slurm:
    """A cluster that runs from its making to `close`, and ends with this process however that ends.

    `environment` is what a subprocess needs to talk to it: the tests' own without what another Slurm may have put there, and
    SLURM_CONF. `nodes` are the names of its nodes.
    """

    def __init__(self, num_nodes: int) -> None:
        # A short name, not pytest's: sockets are made below it. The ports lie below those that the kernel gives away.
        self.directory = Path(tempfile.mkdtemp(prefix="poro-", dir="/tmp"))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_SLURM)}
        self.environment |= {
            "SLURM_CONF": str(self.directory / "slurm.conf"),
            "PORO_CLUSTER_DIR": str(self.directory),
            "PORO_CLUSTER_PORT": str(_free_ports(num_nodes + 1)),
        }
        # Its input ends when this process does, also by SIGKILL, which leaves no time for `close`.
        program = 'cat; "$0" down; rm -rf "$PORO_CLUSTER_DIR"'
        self._undertaker = subprocess.Popen(
            ["bash", "-c", program, _PROGRAM], stdin=subprocess.PIPE, env=self.environment, start_new_session=True
        )
        try:
            self._cluster("up", str(num_nodes))
        except BaseException:
            self.close()
            raise
        self.nodes = (self.directory / "nodes").read_text().split()

    def close(self) -> None:
        """End the cluster with all its jobs and remove its directory."""
        self._cluster("down")
        self._undertaker.communicate(timeout=60)

    def run(self, *command: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command that finds this cluster, by default one that must succeed; `options` are those of subprocess.run."""
        options = {"env": self.environment, "timeout": 60, **options}
        result = subprocess.run(command, check=False, text=True, capture_output=True, **options)
        assert not check or result.returncode == 0, f"{command} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
        return result

    def submit(self, *arguments: str | Path, **options: Any) -> str:
        """The number of the job that `sbatch ARGUMENTS` makes. Nothing is added: options here would overrule a script's own."""
        return self.run("sbatch", "--parsable", *arguments, **options).stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, also up to five minutes after its end; of an array one element, `4_1`."""
        return self._show("job", number)

    def node(self, name: str) -> dict[str, str]:
        """What `scontrol show node` says."""
        return self._show("node", name)

    def wait(self, number: str, states: str | set[str] | frozenset[str] = _ENDED, timeout: float = 60) -> dict[str, str]:
        """The job once its JobState is one of `states`, by default any that ends it."""
        states = {states} if isinstance(states, str) else states
        end = time.monotonic() + timeout
        while (job := self.job(number))["JobState"] not in states:
            if time.monotonic() > end:
                raise TimeoutError(f"job {number} was none of {sorted(states)} for {timeout:g} s: {job}")
            time.sleep(0.1)
        return job

    def kill_node(self, name: str) -> None:
        """The node dies with all on it. Slurm notices by itself after about 13 s, at once by `mark_down`."""
        self._cluster("kill-node", name)

    def mark_down(self, name: str) -> None:
        """Slurm takes the node for lost and requeues its jobs; one that lives comes back by itself, one killed by `start_node`."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test")

    def start_node(self, name: str) -> None:
        """A killed node comes back; where the controller runs, it takes jobs again when this returns."""
        self._cluster("start-node", name)

    def inside(self, name: str) -> list[str]:
        """The words before a command that make it see the file systems as the node does; nodes in namespaces only."""
        holder = (self.directory / "run" / f"node-{name}.pid").read_text().strip()
        node = subprocess.run(["pgrep", "--parent", holder], capture_output=True, text=True, check=True).stdout.split()[0]
        return ["nsenter", "--target", node, "--mount"]

    def stop_controller(self) -> None:
        """Slurm cannot be reached; running jobs go on."""
        self._cluster("stop-controller")

    def start_controller(self) -> None:
        """Slurm answers again, and knows what it knew."""
        self._cluster("start-controller")

    def _cluster(self, *arguments: str) -> None:
        self.run(_PROGRAM, *arguments)

    def _show(self, kind: str, name: str) -> dict[str, str]:
        lines = self.run("scontrol", "show", kind, "-o", name).stdout.splitlines()
        assert len(lines) == 1, f"{kind} {name} is {len(lines)} of them"
        return dict(re.findall(r"([\w/:]+)=(.*?)(?= [\w/:]+=|\s*$)", lines[0]))


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody has, tried from a place that other processes do not begin at."""
    for first in range(20000 + os.getpid() % 500 * 20, 32000, 20):
        try:
            with ExitStack() as held:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports")
