import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_poro.observe import read_metrics
from megatron_poro.observe.wandb import has_key, wandb_mode
from megatron_poro.observe.wandb_marks import load_marks
from tests.observe.starts import ended, make_run, start, started, steps, validated
from tests.observe.wandb_files import steps_of
from tests.observe.wandb_server import KEY, Run, wandb_server
from tests.runs import losses_of, poro, write_run, write_tokens

OFFLINE = {"WANDB_MODE": "offline"}


def only_run(runs: dict[str, Run], run_directory: Path) -> Run:
    assert list(runs) == [(run_directory / "wandb_id").read_text()]
    return next(iter(runs.values()))


def upload(run: Path, environment: dict[str, str], code: int = 0) -> "subprocess.CompletedProcess[str]":
    return poro("wandb-sync", run, code=code, **environment)


def parts(run: Path) -> list[list[int]]:
    """The steps of every offline part that has some."""
    return sorted(found for path in run.glob("wandb/offline-run-*/*.wandb") if (found := steps_of(path)))


def test_three_starts_with_two_kills_are_one_wandb_run_after_wandb_sync(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    start(run, [started(0), *steps(1, 6, plus=0.1)], OFFLINE, killed=True)
    start(run, [started(4), *steps(5, 8, plus=0.2)], OFFLINE, killed=True)
    start(run, [started(6), *steps(7, 9, plus=0.3), validated(9, 2.5), ended(9)], OFFLINE)
    assert [7, 8, 9] in parts(run)
    with wandb_server() as server:
        done = upload(run, server.environment())
        held = only_run(server.runs, run)
        assert done.stdout.startswith(f"{run}: 9 steps uploaded")
        assert len(done.stdout.splitlines()) == 1
        assert held.steps == list(range(1, 10))
        losses = [1.1, 2.1, 3.1, 4.1, 5.2, 6.2, 7.3, 8.3, 9.3]
        assert held.curve("train/loss") == pytest.approx(dict(enumerate(losses, 1)))
        assert held.curve("validation_loss/fi") == {9: 2.5}
        assert held.summary["train/loss"] == {"min": 1.1, "last": 9.3}
        assert held.exits == [0]
        assert [alert["title"] for alert in held.alerts] == ["restart", "restart", "done"]

        again = upload(run, server.environment())
        assert "nothing new" in again.stdout
        assert (held.lines_sent, len(held.alerts), held.rewinds) == (9, 3, [])


def test_a_run_that_was_killed_twice_while_it_trained_is_one_wandb_run(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    path, run = write_run(tmp_path / "run.toml", {"observe": {"wandb_project": "poro"}}), tmp_path / "run"
    offline = {**OFFLINE, "HF_TOKEN": "planted-token", "WANDB_API_KEY": "planted" + KEY[7:]}
    poro("train", path, code=137, PORO_FAULT="kill@rank=0,step=7,phase=forward", **offline)
    poro("train", path, code=137, PORO_FAULT="kill@rank=0,step=11,phase=forward", **offline)
    poro("train", path, code=0, **offline)
    for file in (file for file in run.rglob("*") if file.is_file()):
        assert b"planted" not in file.read_bytes(), file
    with wandb_server() as server:
        upload(path, server.environment())
        held = only_run(server.runs, run)
        assert held.steps == list(range(13))
        assert {n: loss for n, loss in held.curve("train/loss").items() if n} == {
            n: loss for n, (loss, _) in losses_of(run).items()
        }
        assert [alert["title"] for alert in held.alerts].count("failure") == 2
        assert held.config["start"]["value"]["layout"]
        artifacts = [artifact for artifact in held.artifacts if artifact["artifactTypeName"] == "checkpoint"]
        assert len(artifacts) == 3
        references = [entry["ref"] for manifest in server.manifests.values() for entry in manifest["contents"].values()]
        folders = {f"file://{run / 'checkpoints'}/step_{n:08d}" for n in (4, 8, 12)}
        assert {reference.rpartition("/")[0] for reference in references} == folders


def test_the_newest_step_of_a_run_that_goes_on_waits_for_its_validation(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with wandb_server() as server:
        start(run, [started(0), *steps(1, 4)], OFFLINE)
        upload(run, server.environment())
        held = only_run(server.runs, run)
        assert held.steps == [1, 2, 3]
        start(run, [started(4), validated(4, 2.0), *steps(5, 6), ended(6)], OFFLINE)
        upload(run, server.environment())
        assert held.steps == [1, 2, 3, 4, 5, 6]
        assert held.curve("validation_loss/fi") == {4: 2.0}
        assert held.lines_sent == 6


@pytest.mark.parametrize("refuses", [False, True])
def test_steps_that_were_uploaded_and_repeated_otherwise_are_taken_back(tmp_path: Path, refuses: bool) -> None:
    run = make_run(tmp_path)
    with wandb_server(refuses_rewind=refuses) as server:
        start(run, [started(0), *steps(1, 6), ended(6)], OFFLINE)
        upload(run, server.environment())
        start(run, [started(4), *steps(5, 8, plus=0.5), ended(8)], OFFLINE)
        done = upload(run, server.environment())
        held = only_run(server.runs, run)
        assert held.steps == list(range(1, 9))
        assert held.rewinds == ([] if refuses else [4])
        assert held.curve("train/loss")[6] == (6 if refuses else 6.5)
        assert done.stderr.count("does not go back") == refuses


def test_steps_that_were_repeated_to_the_bit_are_not_uploaded_again(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with wandb_server() as server:
        start(run, [started(0), *steps(1, 6), ended(6)], OFFLINE)
        upload(run, server.environment())
        start(run, [started(4), *steps(5, 8), ended(8)], OFFLINE)
        upload(run, server.environment())
        held = only_run(server.runs, run)
        assert (held.steps, held.rewinds, held.lines_sent) == (list(range(1, 9)), [], 8)


def test_an_upload_that_was_interrupted_is_done_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    start(run, [started(0), validated(0, 3.0), *steps(1, 6), ended(6)], OFFLINE)
    with wandb_server() as server:
        upload(run, server.environment())
        (run / "wandb" / "uploaded.json").unlink()  # what an upload that did not end leaves
        held = only_run(server.runs, run)
        held.history = held.history[:3]
        upload(run, server.environment())
        assert held.steps == list(range(7))


@pytest.mark.parametrize("refuses", [False, True])
def test_online_restarts_and_rollbacks_keep_one_curve(tmp_path: Path, refuses: bool) -> None:
    run = make_run(tmp_path)
    with wandb_server(refuses_rewind=refuses) as server:
        start(run, [started(0), *steps(1, 6)], server.environment())
        rollback = started(3, left_out=[40, 47])
        records = [started(4), *steps(5, 8, plus=0.25), rollback, *steps(4, 9, plus=0.5), ended(9)]
        done = start(run, records, server.environment())
        held = only_run(server.runs, run)
        assert held.steps == list(range(1, 10))
        expected = {3: 3, 4: 4 if refuses else 4.5, 6: 6 if refuses else 6.5, 8: 8.25 if refuses else 8.5, 9: 9.5}
        assert {n: held.curve("train/loss")[n] for n in expected} == expected
        assert held.rewinds == ([] if refuses else [4, 3])
        assert done.stderr.count("does not go back") == (2 if refuses else 0)
        assert [alert["title"] for alert in held.alerts] == ["restart", "rollback", "done"]
        assert "nothing new" in upload(run, server.environment()).stdout


def test_what_a_killed_online_start_did_not_send_the_next_one_brings(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with wandb_server() as server:
        start(run, [started(0), *steps(1, 6)], server.environment(), killed=True)
        start(run, [started(6), *steps(7, 8), ended(8)], server.environment())
        held = only_run(server.runs, run)
        assert held.steps == list(range(1, 9))
        assert held.exits[-1] == 0
        assert load_marks(run).records == 11


def test_an_online_start_brings_what_offline_ones_left(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    start(run, [started(0), *steps(1, 6)], OFFLINE)
    with wandb_server() as server:
        start(run, [started(6), *steps(7, 8), ended(8)], server.environment())
        assert only_run(server.runs, run).steps == list(range(1, 9))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def accept() -> None:
        try:
            while True:
                connections.append(server.accept()[0])
        except OSError:
            pass

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()
    for connection in connections:
        connection.close()


def test_a_server_that_never_answers_costs_one_warning(tmp_path: Path, silent_server: str) -> None:
    run = make_run(tmp_path)
    environment = {"WANDB_BASE_URL": silent_server, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
    done = start(run, [started(0), *steps(1, 50), ended(50)], environment)
    assert done.stderr.count("warning:") == 1, done.stderr
    assert len(read_metrics(run / "metrics.jsonl")) == 52


def test_a_server_that_fails_costs_one_warning_and_the_run_can_be_uploaded_later(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with wandb_server(fails_with=400) as server:
        done = start(run, [started(0), *steps(1, 3), ended(3)], server.environment())
        assert done.stderr.count("warning:") == 1, done.stderr
        assert "warning: wandb goes on offline" in done.stderr
        assert f"`poro wandb-sync {run}` uploads" in done.stderr
        assert parts(run) == [[1, 2, 3]]
        server.fails_with = 0
        upload(run, server.environment())
        assert only_run(server.runs, run).steps == [1, 2, 3]


def test_wandb_sync_says_what_is_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    environment = {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_MODE": ""}
    assert "no parts to upload" in upload(run, environment, code=2).stderr
    assert "is it a run directory" in upload(tmp_path, environment, code=2).stderr
    start(run, [started(0), *steps(1, 3), ended(3)], OFFLINE)
    assert "no wandb key: `wandb login`" in upload(run, environment, code=2).stderr
    unreachable = upload(run, {**environment, "WANDB_API_KEY": KEY}, code=2).stderr
    assert "error: http://127.0.0.1:9 does not take the upload" in unreachable
    assert load_marks(run).records == 0


def test_a_run_without_a_key_stays_offline_and_says_how_to_upload(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    done = start(run, [started(0), *steps(1, 2), ended(2)], {})
    assert f"`poro wandb-sync {run}` uploads" in done.stdout
    assert parts(run) == [[1, 2]]


def test_a_slurm_job_is_offline_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WANDB_API_KEY", KEY), ("SLURM_JOB_ID", "7"), ("WANDB_MODE", "")):
        monkeypatch.setenv(name, value)
    assert wandb_mode(tmp_path) == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode(tmp_path) == "online"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert wandb_mode(tmp_path) == "online"


def test_a_key_is_found_where_wandb_login_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_key()
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert has_key()
