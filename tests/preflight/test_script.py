"""A job script read as text: options in every form, variables wherever they are set, what it trains, and nothing of it is run."""

from pathlib import Path

import pytest

from megatron_poro.preflight.script import JobScript, minutes_of, read_script
from tests.preflight.cases import Run, write_all
from tests.runs import REPOSITORY


def script_of(folder: Path, text: str) -> JobScript:
    (folder / "job.sh").write_text(text)
    return read_script(folder / "job.sh")


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("#SBATCH --nodes=4", "--nodes", "4"),
        ("#SBATCH --nodes 4", "--nodes", "4"),
        ("#SBATCH -N 4  # four", "--nodes", "4"),
        ("#SBATCH -N4", "--nodes", "4"),
        ("#SBATCH --requeue --nodes=4", "--requeue", ""),
        ("#SBATCH -t 1-00:00:00 -p small", "--time", "1-00:00:00"),
        ("#SBATCH -a 0-9%1", "--array", "0-9%1"),
    ],
)
def test_options_in_every_form_of_sbatch(line: str, option: str, value: str, tmp_path: Path) -> None:
    assert script_of(tmp_path, f"#!/bin/bash\n{line}\n").options[option] == value


@pytest.mark.parametrize(
    ("time", "minutes"),
    [
        ("30", 30),
        ("30:00", 30),
        ("30:01", 31),
        ("1:30:00", 90),
        ("2-00", 2880),
        ("2-01:30", 2970),
        ("2-00:00:00", 2880),
        ("", None),
        ("soon", None),
        ("1:2:3:4", None),
    ],
)
def test_time_limits_in_every_form_of_sbatch(time: str, minutes: int | None) -> None:
    assert minutes_of(time) == minutes


@pytest.mark.parametrize(
    "line",
    [
        "export NCCL_X=PHB",
        "export A=1 NCCL_X=PHB   # both",
        "NCCL_X=PHB srun poro train run.toml",
        "srun env NCCL_X=PHB poro train run.toml",
        "srun --export=ALL,NCCL_X=PHB poro train run.toml",
        "export SINGULARITYENV_NCCL_X=PHB",
        "singularity exec --env=NCCL_X=PHB image.sif poro",
        "level=PHB; export NCCL_X=$level",
        'level=PHB\nexport NCCL_X="${level}"',
        'export NCCL_X="${NCCL_X:-PHB}"',
        "if true; then export NCCL_X=PHB; fi",
        "srun \\\n  env NCCL_X=PHB poro",
    ],
)
def test_variables_wherever_they_are_set(line: str, tmp_path: Path) -> None:
    assert script_of(tmp_path, f"#!/bin/bash\n{line}\n").settings["NCCL_X"] == "PHB"


def test_a_comment_sets_nothing_and_an_override_is_no_variable(tmp_path: Path) -> None:
    script = script_of(tmp_path, "# export NCCL_X=PHB\nsrun poro train run.toml run_directory=runs/a training.steps=3 &\nwait\n")
    assert script.settings == {}
    assert script.training == ["run.toml", "run_directory=runs/a", "training.steps=3"]


@pytest.mark.parametrize(
    "line", ["srun ./launcher.sh poro", 'l="$PWD/launcher.sh"; srun "$l"', "source ${HERE}/launcher.sh;", "srun bash launcher.sh"]
)
def test_a_launcher_beside_the_script_is_read_too(line: str, tmp_path: Path) -> None:
    (tmp_path / "launcher.sh").write_text("export NCCL_X=PHB\n")
    assert script_of(tmp_path, f"{line}\n").settings["NCCL_X"] == "PHB"


def test_our_own_scripts_are_understood(tmp_path: Path) -> None:
    launched = read_script(write_all(tmp_path).directory / "slurm" / "job.sh")
    assert launched.training == [str(tmp_path / "run" / "slurm" / "run.toml")]
    assert launched.options["--signal"].startswith("B:USR1@")
    example = read_script(REPOSITORY / "examples" / "slurm" / "pretrain.sbatch")
    assert example.training == ["/scratch/project/poro2-70b.toml"]
    assert example.options["--nodes"] == "16"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0\0\xff",
        "'",
        '"$(',
        "a=$a\nb=${b}\nexport c=$b$c",
        "x" * 100_000,
        "#SBATCH\n#SBATCH --\n#SBATCH -N",
        "${",
        "poro train",
    ],
)
def test_no_text_is_too_strange(text: str, tmp_path: Path) -> None:
    script = script_of(tmp_path, text)
    assert isinstance(script.settings, dict)
    assert not script.training


def test_what_a_script_says_is_never_run(tmp_path: Path) -> None:
    run: Run = write_all(tmp_path, launched=False)
    (tmp_path / "own.sh").write_text("$(touch owned)\n`touch owned`\ntouch owned\nporo train $(touch owned)\n")
    run.check(script=tmp_path / "own.sh")
    assert not list(tmp_path.rglob("owned"))


def test_the_script_of_a_dry_run_may_name_what_the_launch_will_write(tmp_path: Path) -> None:
    run = write_all(tmp_path)
    folder = run.directory / "slurm"
    (folder / "job.sh").rename(tmp_path / "dry.sh")
    for left in (folder / "run.toml", folder / "job.json"):
        left.unlink()
    found = run.check(script=tmp_path / "dry.sh")
    assert {f.colour for f in found if f.check == "script.files"} == {"green"}
    assert any("is written by `poro launch`" in f.text for f in found if f.check == "script.run")


@pytest.mark.parametrize(
    ("option", "trap", "colour"),
    [
        ("B:USR1@600", "trap 'kill -USR1 $step' USR1", "green"),
        ("B:SIGUSR2@600", "trap save SIGUSR2", "green"),
        ("B:USR1", "trap save USR1", "green"),
        ("USR1@600", "", "green"),
        ("B:USR1@600", "trap save USR2", "red"),
        ("B:USR1@600", "# trap save USR1", "red"),
    ],
)
def test_a_signal_to_the_batch_script_needs_its_trap(option: str, trap: str, colour: str, tmp_path: Path) -> None:
    run = write_all(tmp_path, launched=False)
    (tmp_path / "own.sh").write_text(f"#SBATCH --signal={option}\n{trap}\nporo train run.toml\n")
    assert [f.colour for f in run.of("script.signal", script=tmp_path / "own.sh")] == [colour]
