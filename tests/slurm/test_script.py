"""The rendered script: plain bash that passes shellcheck, with no word of the user's unquoted."""

import hashlib
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.config import save_run
from megatron_poro.engine.paths import list_checkpoints, step_of
from megatron_poro.errors import LaunchError
from megatron_poro.slurm.element import is_secret
from megatron_poro.slurm.launch import _note_image, explain, keep_script, prepare
from megatron_poro.slurm.profile import NAMES, Variable, load_profile
from megatron_poro.slurm.records import load_job, read_notes, save_job
from megatron_poro.slurm.script import Plan, render
from megatron_poro.slurm.size import Request, refuse_known_bad
from tests.runs import command, poro, write_run, write_tokens

HOSTILE = [
    "a b",
    "$(touch owned)",
    "`touch owned`",
    "';touch owned;'",
    '"; touch owned; "',
    "a\nb",
    "%j %x",
    "-rf",
    "ä€",
    "#SBATCH --x",
    "\\",
    "&",
]


def write_inputs(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_tokens(folder)
    return write_run(folder / "run.toml", {"training": {"steps": 4}, **changes})


def plan_of(name: str, directory: str = "/scratch/run", image: str = "") -> Plan:
    profile = load_profile(name)
    profile = replace(profile, container=replace(profile.container, image=image))
    options = tuple((option.option, option.why) for option in profile.sbatch)
    return Plan(profile, directory, f"{directory}/slurm/run.toml", "/usr/bin/python3", options, (), 2, 4)


@pytest.mark.parametrize("image", ["", "/images/rocm 7.sif"])
@pytest.mark.parametrize("name", NAMES)
def test_every_profile_gives_a_script_that_shellcheck_passes(name: str, image: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-"], input=render(plan_of(name, image=image)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("word", HOSTILE)
def test_a_hostile_path_image_or_value_stays_one_word(word: str, tmp_path: Path) -> None:
    plan = plan_of("lumi", directory=f"/scratch/{word}", image=f"/images/{word}.sif")
    hostile = Variable(name="MINE", value=f"{{SLURM_JOB_ID}}{word}", why=f"tried{word}")
    plan = replace(plan, profile=replace(plan.profile, environment=(hostile,)), srun_options=((f"--bind={word}", word),))
    script = render(plan)
    # srun stands in the script as it is; here it shows the words that it gets, and the variable that they would see.
    step = script.split("timeout 300 ")[1].split("\nporo element nodes")[0]
    export = script[script.index("export MINE=") :].split("   # tried")[0]
    program = f'srun() {{ printf "%s\\0" "$@" "$MINE"; }}\nSLURM_JOB_ID=3; folder=F; checks=C\n{export}\n{step}'
    words = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split("\0")[
        :-1
    ]
    assert words[words.index("singularity") + 1] == "exec"
    assert words[words.index("python3") - 1] == f"/images/{word}.sif"
    assert words[words.index("--bind") + 1].endswith(f",/scratch/{word}")
    assert words[-3:] == ["F", "C", f"3{word}"]
    train = script[script.index("srun --nodes=2 --ntasks=8") :].split(" &\n")[0]
    program = f'srun() {{ printf "%s\\0" "$@"; }}\nrun_file=R\n{train}'
    words = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split("\0")[
        :-1
    ]
    assert f"--bind={word}" in words
    assert words[-2:] == ["train", "R"]
    assert not list(tmp_path.iterdir())


def test_a_run_in_a_hostile_place_trains_there_and_nothing_of_its_name_is_run(tmp_path: Path) -> None:
    folder = tmp_path / "$(touch owned) 'a' `touch owned`; \"b\" %j"
    path = write_inputs(folder)
    done = subprocess.run(
        command("launch", path, "--cluster", "local", "--elements", "3"),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step_of(saved) for saved in list_checkpoints(folder / "run")] == [4]
    assert not list(tmp_path.rglob("owned"))
    assert "done" in poro("status", folder / "run").stdout


def test_names_for_slurm_are_made_plain_or_refused(tmp_path: Path) -> None:
    path = write_inputs(tmp_path / "a $(b)")
    prepared = prepare(
        Request(path, cluster="test", nodes=1, tasks_per_node=1, elements=1, minutes=5, name="x; $(touch y)\n#SBATCH")
    )
    assert "#SBATCH --job-name=x_touch_y_SBATCH " in prepared.text
    with pytest.raises(LaunchError, match="--account: 'a b' is no name"):
        prepare(Request(path, cluster="test", nodes=1, tasks_per_node=1, elements=1, minutes=5, account="a b"))


def test_a_dry_run_says_what_each_option_is_for_and_touches_nothing(tmp_path: Path) -> None:
    path = write_inputs(tmp_path, parallel={"data": 8})
    before = sorted(tmp_path.rglob("*"))
    said = explain(prepare(Request(path, cluster="lumi", account="project_1", days=3.0)))
    assert sorted(tmp_path.rglob("*")) == before
    options = [line for line in said.splitlines() if line.startswith("#SBATCH")]
    assert all("  # " in line for line in options)
    assert any(line.startswith("#SBATCH --array=0-3%1 ") for line in options)  # 3 days of 2-day elements, and 2 to spare
    assert any(line.startswith("#SBATCH --signal=B:USR1@600 ") for line in options)
    line = said.splitlines()[-1]
    assert shlex.split(line)[:2] == ["sbatch", "--parsable"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"elements": None}, "--elements or --days"),
        ({"elements": 0}, "--elements: 0 is none"),
        ({"elements": None, "days": -1.0}, "--days: -1 days"),
        ({"nodes": 0}, "--nodes: 0 is none"),
        ({"tasks_per_node": 0}, "--tasks-per-node: 0 is none"),
        ({"minutes": 0}, "--time: 0 is none"),
        ({"brake": 0}, "--brake: 0 would hold"),
        ({"lead_minutes": 10.0}, "--lead: 10 minutes are not within the 10 of an element"),
        ({"nodes": None}, "--nodes: how many"),
        ({"minutes": 100000}, "--time: 100000 minutes, but partition dev-g allows 180"),
        ({"nodes": 64}, "--nodes: 64 are more than the 32 of partition dev-g"),
        ({"nodes": 2, "tasks_per_node": 3}, "does not divide|micro-batch|global_batch_size"),
    ],
)
def test_a_size_that_cannot_be_is_refused_by_its_option(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_inputs(tmp_path)
    with pytest.raises(Exception, match=message):
        prepare(replace(Request(path, cluster="test", nodes=1, tasks_per_node=1, elements=2, minutes=10), **changes))


def test_what_was_never_launched_or_trained_is_named(tmp_path: Path) -> None:
    assert "neither launched nor trained" in poro("status", tmp_path, code=2).stderr
    for word in ("stop", "cancel"):
        assert "nothing was launched from here; `touch" in poro(word, tmp_path, code=2).stderr
    path = write_inputs(tmp_path)
    assert "--cluster: where?" in poro("launch", path, code=2).stderr
    assert "launched without --pipeline" in poro("launch", "--pipeline", path, code=2).stderr
    poro("train", path)
    several = poro("status", path, tmp_path / "none", code=2)
    assert f"{tmp_path / 'run'}: done, step 4/4" in several.stdout
    assert "neither launched nor trained" in several.stderr
    assert poro("status", "--short", path).stdout.startswith(f"{tmp_path / 'run'}: done, step 4/4")
    assert "the recipe says where" in poro("launch", "--pipeline", tmp_path / "r.toml", "--cluster", "test", code=2).stderr


def test_an_element_gives_a_launch_that_was_ended_too_early_its_id(tmp_path: Path) -> None:
    path = write_inputs(tmp_path)
    prepared = prepare(Request(path, cluster="test", nodes=1, tasks_per_node=1, elements=1, minutes=5))
    keep_script(prepared.job, prepared.text)
    save_run(prepared.config, Path(prepared.job.run_file))
    save_job(prepared.job)
    poro("element", "begin", tmp_path / "run" / "slurm", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="0", SLURM_JOB_ID="8")
    job = load_job(tmp_path / "run")
    assert job is not None
    assert job.ids == ("7",)
    begins = [record for record in read_notes(tmp_path / "run") if record["event"] == "begin"]
    assert [(record["job"], record["job_id"], record["step"]) for record in begins] == [("7_0", "8", 0)]


def test_a_setting_that_is_known_to_hang_is_refused_with_its_source() -> None:
    lumi = load_profile("lumi")
    with pytest.raises(LaunchError, match=r"NCCL_NET_GDR_LEVEL=PHB .*hang.*leave it unset.*laifs-container-recipes/issues/30"):
        refuse_known_bad(lumi, {"NCCL_NET_GDR_LEVEL": "PHB"})
    refuse_known_bad(lumi, {"NCCL_NET_GDR_LEVEL": "3"})


@pytest.mark.parametrize(
    ("name", "message"),
    [("SBATCH_ARRAY_INX", "overrules --array"), ("SBATCH_PARTITION", "overrules --partition"), ("SBATCH_WAIT", "overrules --wait")],
)
def test_a_variable_that_overrules_the_script_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Request(write_inputs(tmp_path), cluster="test", nodes=1, tasks_per_node=1, elements=2, minutes=10, mode="chain")
    monkeypatch.setenv("SBATCH_QOS", "high")
    prepare(asked)
    monkeypatch.setenv(name, "0-9")
    with pytest.raises(LaunchError, match=f"{name}=0-9 in the environment {message} of the script; unset it"):
        prepare(asked)


@pytest.mark.parametrize("word", ["--array=0-9", "--arr=0-9", "-a0-9", "--wait", "-W", "--test-only", "-N4", "job.sh"])
def test_an_option_of_sbatch_that_breaks_a_launch_is_refused(word: str, tmp_path: Path) -> None:
    asked = Request(write_inputs(tmp_path), cluster="test", nodes=1, tasks_per_node=1, elements=2, minutes=10)
    prepare(replace(asked, sbatch=("--qos=high", "-q", "--nodelist=a", "--wait-all-nodes=1", "--dependency=afterany:3")))
    with pytest.raises(LaunchError, match=r"--sbatch.*(is for `poro launch` to say|is no option)"):
        prepare(replace(asked, sbatch=(word,)))


@pytest.mark.parametrize("directory", ["/scratch/a,b", "/scratch/a:b"])
def test_a_folder_that_cannot_be_bound_into_a_container_is_refused(directory: str) -> None:
    render(plan_of("lumi", directory))
    with pytest.raises(LaunchError, match=r"singularity --bind has no way to write a path with ',' or ':'; rename it"):
        render(plan_of("lumi", directory, image="/images/rocm.sif"))


def test_ranks_get_the_environment_also_where_the_job_got_none() -> None:
    assert "unset SLURM_EXPORT_ENV" in render(plan_of("lumi"))


@pytest.mark.parametrize("damage", ["rm job.json", "echo 'no json' >job.json"])
def test_an_element_that_cannot_read_its_launch_holds_the_others(damage: str, tmp_path: Path) -> None:
    path = write_inputs(tmp_path)
    prepared = prepare(Request(path, cluster="test", nodes=1, tasks_per_node=1, elements=1, minutes=5))
    keep_script(prepared.job, prepared.text)
    save_job(prepared.job)
    subprocess.run(["bash", "-c", damage], cwd=prepared.job.folder, check=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/bash\necho "$*" >>{tmp_path}/said\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "8"}
    done = subprocess.run(["bash", prepared.job.script], env=environment, cwd=os.getcwd(), check=False, capture_output=True)
    assert done.returncode == 2
    assert (tmp_path / "said").read_text() == "hold 7\n"


def test_a_password_in_an_address_or_under_a_short_name_is_a_secret() -> None:
    assert is_secret("SINGULARITYENV_https_proxy", "http://me:hunter2@proxy:8080")
    assert is_secret("APPTAINERENV_DB_PW")
    assert not is_secret("SINGULARITYENV_https_proxy", "http://proxy:8080")


def test_the_lead_follows_the_slowest_save(tmp_path: Path) -> None:
    path = write_inputs(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"event": "checkpoint", "step": 1, "seconds": 100.0, "time": 1.0}\n')
    said = prepare(Request(path, cluster="test", nodes=1, tasks_per_node=1, elements=1, minutes=60)).text
    assert "--signal=B:USR1@360 " in said
    said = prepare(Request(path, cluster="test", nodes=1, tasks_per_node=1, elements=1, minutes=60, lead_minutes=20.0)).text
    assert "--signal=B:USR1@1200 " in said


def test_without_slurm_the_commands_say_so(tmp_path: Path) -> None:
    path = write_inputs(tmp_path)
    bare = {"PATH": str(Path(shutil.which("bash") or "/bin/bash").parent / "nothing")}
    words = ("launch", path, "--cluster", "test", "--nodes", "1", "--tasks-per-node", "1", "--elements", "1", "--time", "0:10:00")
    assert "sbatch: not installed here" in poro(*words, code=2, **bare).stderr
    assert not (tmp_path / "run" / "slurm" / "job.json").exists()


def test_the_image_that_ranks_run_in_is_kept_with_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "rocm.sif"
    image.write_bytes(b"an image")
    target = tmp_path / "container.json"
    _note_image(target, image)
    kept = json.loads(target.read_text())
    assert (kept["image"], kept["bytes"], kept["sha256"]) == (str(image), 8, hashlib.sha256(b"an image").hexdigest())
    monkeypatch.setattr("hashlib.file_digest", None)  # it is not read again while it is the same file
    _note_image(target, image)
    with pytest.raises(LaunchError, match=r"--container: .*missing.sif: No such file"):
        _note_image(target, tmp_path / "missing.sif")


def test_a_dry_run_tells_what_a_launch_would_be_refused_for(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.toml")  # its token files are missing
    words: list[str | Path] = [
        *("launch", path, "--cluster", "generic-nvidia", "--nodes", "1", "--tasks-per-node", "1", "--elements", "2")
    ]
    words += ["--time", "5:00", "--container", tmp_path / "no.sif"]
    said = poro(*words, "--dry-run").stdout
    assert "#SBATCH --time=0-00:05:00" in said
    assert f"# would be refused: {tmp_path / 'fi.idx'}: No such file or directory" in said
    assert f"# would be refused: --container: {tmp_path / 'no.sif'}: no such file" in said
    assert f"{tmp_path / 'fi.idx'}: No such file or directory" in poro(*words, code=2).stderr
    assert list(tmp_path.iterdir()) == [path]
    local = poro("launch", path, "--cluster", "local", "--elements", "1", "--dry-run").stdout
    assert local.splitlines()[-1] == f"bash {tmp_path / 'run' / 'slurm' / 'job.sh'}   # up to 1 time"


def test_without_days_the_elements_are_those_that_the_planner_says(tmp_path: Path) -> None:
    path = write_inputs(tmp_path, parallel={"data": 8}, training={"tokens": 10**11, "steps": 0})
    words = ("launch", path, "--cluster", "lumi", "--account", "project_1", "--dry-run")
    planned = json.loads(poro("plan", path, "--cluster", "lumi", "--json").stdout)
    said = poro(*words)
    assert f"{planned['days']:.1f} days by `poro plan`" in said.stderr
    minutes = 2880
    elements = math.ceil(planned["days"] * 1440 / minutes) + 2
    assert f"#SBATCH --array=0-{elements - 1}%1 " in said.stdout
