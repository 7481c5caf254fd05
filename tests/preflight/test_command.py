"""`poro check` as a user meets it: exit codes, colours, JSON, what is silenced, and that a login node needs no torch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_poro.cli.main import main
from megatron_poro.preflight.findings import Finding, not_checked, render, render_json, size, worst
from megatron_poro.preflight.names import NAMES
from tests.preflight.breaks import without_rates
from tests.preflight.cases import Run, write_all
from tests.runs import REPOSITORY


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return write_all(tmp_path)


def words(run: Run, *more: str) -> list[str]:
    return ["check", str(run.file), "--cluster", str(run.folder / "cluster.toml"), *more]


def test_green_and_yellow_are_code_0_red_is_2_and_strict_takes_yellow_for_red(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(run)) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 red, 0 yellow, ")
    without_rates(run)
    assert main(words(run)) == 0
    assert re.fullmatch(r"0 red, [1-9] yellow, .*", capsys.readouterr().out.splitlines()[-1])
    assert main(words(run, "--strict")) == 2
    allowed = "checks.allow=['layout.memory', 'saves.time', 'saves.limit', 'saves.lead', 'environment.profile']"
    assert main(words(run, allowed, "--strict")) == 0
    assert "allowed: not checked: how much memory" in capsys.readouterr().out
    assert main(words(run, "parallel.tensor=3")) == 2
    assert main(["check", str(run.folder / "none.toml")]) == 2


def test_lines_are_grouped_by_subject_and_name_key_numbers_and_way_out(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(run, "training.steps=400"))
    lines = capsys.readouterr().out.splitlines()
    subjects = [line for line in lines[:-1] if not line.startswith(" ")]
    assert len(subjects) == len(set(subjects)) > 10
    start = lines.index("mix")
    (line,) = [line for line in lines[start:] if "epochs" in line and "data.sources[1] (en)" in line]
    assert line.startswith("  red     epochs: data.sources[1] (en): ")
    assert "above 4; lower its weight" in line
    assert line.endswith("(Muennighoff et al. 2023, arXiv:2305.16264)")
    assert "\x1b" not in line


def test_what_is_meant_can_be_allowed_in_the_run_file(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    text = run.file.read_text()
    run.file.write_text(f'{text}\n[checks]\nallow = ["mix.epochs", "script.run", "layout.memory"]\n')
    assert main(words(run, "training.steps=400", "--strict")) == 0
    assert "green   epochs: allowed: data.sources" in capsys.readouterr().out


def test_the_shape_of_json(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(run, "--json", "checkpoint.initial=gone")) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"version", "colour", "findings"}
    assert answer["colour"] == "red"
    assert len(answer["findings"]) > 40
    for finding in answer["findings"]:
        assert finding.keys() == {"subject", "check", "colour", "text", "source"}
        assert finding["check"] in NAMES
        assert finding["check"].startswith(finding["subject"] + ".")
        assert finding["colour"] in ("green", "yellow", "red")
        assert finding["text"]


def test_a_user_mistake_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(run), "--script", str(run.folder / "none.sh")]) == 2
    assert capsys.readouterr().err.startswith("error: --script: ")
    assert main(["check", str(run.file), "--cluster", "mars"]) == 2
    assert "no such profile" in capsys.readouterr().err
    (run.folder / "recipe.toml").write_text('directory = "r"\n[[steps]]\nname = "a"\nrun = "run.toml"\n')
    assert main(["check", str(run.folder / "recipe.toml")]) == 2
    assert "check the run file of each step" in capsys.readouterr().err
    for nodes in ("0", "x"):
        with pytest.raises(SystemExit) as stopped:
            main(words(run, "--nodes", nodes))
        assert stopped.value.code == 2


def test_a_login_node_needs_no_torch(run: Run) -> None:
    program = f"import sys; sys.modules['torch'] = None; from megatron_poro.cli.main import main; sys.exit(main({words(run)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=REPOSITORY, env=os.environ, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 red" in done.stdout


def test_a_check_leaves_nothing_behind(run: Run) -> None:
    before = sorted(run.folder.rglob("*"))
    main(words(run))
    assert sorted(run.folder.rglob("*")) == before


def test_findings_as_text_and_their_worst() -> None:
    findings = [Finding("a.x", "green", "good"), not_checked("b.y", "nobody knows"), Finding("a.z", "red", "bad\nly", "https://x")]
    assert render(findings).splitlines() == [
        "a",
        "  green   x: good",
        "  red     z: bad ly (https://x)",
        "b",
        "  yellow  y: not checked: nobody knows",
        "1 red, 1 yellow, 1 green",
    ]
    assert "\x1b[31mred   \x1b[0m" in render(findings, coloured=True)
    assert [worst(findings), worst(findings[:2]), worst([])] == ["red", "yellow", "green"]
    assert json.loads(render_json(findings))["findings"][2]["source"] == "https://x"
    assert [size(988e9), size(5.93e12), size(26)] == ["988 GB", "5.93 TB", "2.6e-08 GB"]
