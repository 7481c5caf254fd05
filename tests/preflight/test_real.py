"""The checks of checkpoints against real ones: a converted model, and what a run of one process saved."""

from pathlib import Path

from megatron_poro.conversion import to_megatron
from tests.preflight.cases import Run, colours
from tests.runs import poro, write_llama, write_run, write_tokens


def test_a_converted_model_and_a_trained_checkpoint_are_what_the_checks_expect(tmp_path: Path) -> None:
    write_tokens(tmp_path)
    write_llama(tmp_path / "hf")
    to_megatron(tmp_path / "hf", tmp_path / "start")
    run = Run(tmp_path)
    write_run(run.file, {"checkpoint": {"initial": "start"}})
    before = colours(run.check(cluster=""))
    assert {name: seen for name, seen in before.items() if name.startswith("start.")} == {
        f"start.{name}": {"green"} for name in ("files", "proof", "model", "positions", "precision", "optimizer")
    }
    poro("train", run.file, "--stop-after=4")
    after = colours(run.check(cluster="", reads_all=True))
    assert after["resume.checkpoint"] == after["resume.contract"] == after["resume.optimizer"] == {"green"}
    assert after["saves.time"] <= {"green", "red"}  # measured now, whatever this machine takes
    changed = colours(run.check("optimizer.learning_rate=1e-4", "data.seed=5", cluster=""))
    assert changed["resume.contract"] == {"red"}
