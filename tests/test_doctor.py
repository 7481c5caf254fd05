import json

from tests.runs import poro


def test_the_doctor_names_everything_a_run_can_use() -> None:
    findings = {f["name"]: f for f in json.loads(poro("doctor", "--json").stdout)["findings"]}
    wanted = {"torch", "accelerator", "collectives", "megatron-core", "transformer-engine", "apex", "slurm", "wandb"}
    assert wanted <= findings.keys()
    assert "gloo" in findings["collectives"]["detail"]
    assert findings["megatron-core"]["status"] == "ok"


def test_without_torch_the_doctor_says_so_and_fails() -> None:
    from megatron_poro.doctor import Finding, render

    table = render(
        [Finding("torch", "fatal", "for training and conversion; `pip install torch`"), Finding("slurm", "ok", "slurm 24.05")]
    )
    assert table.splitlines() == ["fatal    torch  for training and conversion; `pip install torch`", "ok       slurm  slurm 24.05"]
