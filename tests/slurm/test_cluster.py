"""The cluster of the tests is what it says: LUMI's shape, limits and refusals."""

from pathlib import Path

import pytest

from tests.slurm.cluster import Slurm

LUMI = """#!/bin/bash
#SBATCH --account=project_462000001
#SBATCH --partition=standard-g
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-node=8
#SBATCH --mem=480G
#SBATCH --time=2-00:00:00
#SBATCH --exclusive
#SBATCH --hint=nomultithread
#SBATCH --output=out
"""
SMALL = ("--account=project_462000001", "--partition=small", "--ntasks=1", "--mem=1G", "--output=out", "--open-mode=append")


def submit_text(slurm: Slurm, text: str, folder: Path) -> str:
    (folder / "job.sbatch").write_text(text)
    return slurm.submit("job.sbatch", cwd=folder)


def test_two_nodes_run_eight_tasks_each_with_lumis_directives(slurm: Slurm, tmp_path: Path):
    masks = "mask_cpu:0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000"
    task = "echo $SLURM_PROCID $SLURM_NODEID $SLURM_LOCALID $SLURMD_NODENAME $ROCR_VISIBLE_DEVICES"
    job = submit_text(slurm, LUMI + f"srun --cpu-bind={masks} bash -c '{task}' 2>/dev/null\n", tmp_path)
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    lines = sorted((tmp_path / "out").read_text().splitlines(), key=lambda line: int(line.split()[0]))
    nodes = sorted({line.split()[3] for line in lines})
    assert lines == [f"{rank} {rank // 8} {rank % 8} {nodes[rank // 8]} 0,1,2,3,4,5,6,7" for rank in range(16)]
    assert set(nodes) <= set(slurm.nodes)


def test_an_array_of_one_at_a_time_runs_one_at_a_time(slurm: Slurm, tmp_path: Path):
    job = slurm.submit(*SMALL, "--array=0-2%1", "--wrap=mkdir held && sleep 0.3 && rmdir held && echo alone", cwd=tmp_path)
    assert [slurm.wait(f"{job}_{element}")["JobState"] for element in range(3)] == ["COMPLETED"] * 3
    assert (tmp_path / "out").read_text().splitlines() == ["alone"] * 3


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--partition=nosuch", "invalid partition specified: nosuch"),
        ("--time=2-00:00:01", "Requested time limit is invalid"),
        ("--nodes=5", "More processors requested than permitted"),
        ("--cpus-per-task=8", "CPU count per node can not be satisfied"),
        ("--mem=481G", "Memory specification can not be satisfied"),
        ("--gpus-per-node=9", "Requested node configuration is not available"),
    ],
)
def test_what_lumi_cannot_give_is_refused_by_sbatch(slurm: Slurm, tmp_path: Path, option: str, message: str):
    (tmp_path / "job.sbatch").write_text(LUMI)
    refused = slurm.run("sbatch", option, "job.sbatch", check=False, cwd=tmp_path)
    assert refused.returncode == 1
    assert message in refused.stderr


def test_a_job_needs_an_account(slurm: Slurm, tmp_path: Path):
    (tmp_path / "job.sbatch").write_text(LUMI.replace("#SBATCH --account", "# --account"))
    refused = slurm.run("sbatch", "job.sbatch", check=False, cwd=tmp_path)
    assert refused.returncode == 1
    assert "Job violates accounting/QOS policy" in refused.stderr


def test_a_job_that_lost_its_node_is_requeued_and_runs_when_the_node_is_back(slurm: Slurm, tmp_path: Path):
    node = slurm.nodes[-1]
    program = 'echo "run ${SLURM_RESTART_COUNT:-0}"; [ "${SLURM_RESTART_COUNT:-0}" = 1 ] || sleep 300'
    job = slurm.submit(*SMALL, f"--nodelist={node}", f"--wrap={program}", cwd=tmp_path)
    slurm.wait(job, "RUNNING")
    slurm.kill_node(node)
    slurm.mark_down(node)
    assert slurm.wait(job, "PENDING")["Restarts"] == "1"
    slurm.start_node(node)
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert (tmp_path / "out").read_text().splitlines()[-1] == "run 1"


def test_the_controller_comes_back_and_knows_the_jobs(slurm: Slurm, tmp_path: Path):
    job = slurm.submit(*SMALL, "--wrap=until [ -e go ]; do sleep 0.1; done; echo went on", cwd=tmp_path)
    slurm.wait(job, "RUNNING")
    slurm.stop_controller()
    assert slurm.run("squeue", check=False).returncode == 1
    slurm.start_controller()
    assert slurm.job(job)["JobState"] == "RUNNING"
    (tmp_path / "go").touch()
    assert slurm.wait(job)["JobState"] == "COMPLETED"
    assert (tmp_path / "out").read_text() == "went on\n"
