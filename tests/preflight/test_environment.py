"""Known-bad settings: every entry of the data file holds where it should, and nowhere else."""

import re
from pathlib import Path
from typing import Any

import pytest

from megatron_poro.preflight import environment
from megatron_poro.preflight.environment import load_known_bad
from megatron_poro.slurm.profile import load_profile
from tests.preflight.cases import Run, write_all

PACKAGES = {
    "TE-flash-attention": {"transformer-engine": "2.8.0", "flash-attn": "2.8.4"},
    "flash-attention-rocm5": {"flash-attn": "2.0"},
}
SCRIPTS = {
    "drops-optimizer": "python train.py --finetune",
    "default-split": "python pretrain_gpt.py",
    "installs-at-start": "pip install x",
    "no-proof": "poro convert to-hf a b --no-proof",
    "padded-export": "python convert.py --saver=llama_mistral",
    "silent-converter": "python tools/checkpoint/convert.py",
    "wide-conversion": "python convert.py --loader llama_mistral",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_all(tmp_path, launched=False)


def sentences(run: Run, *overrides: str, **question: Any) -> list[str]:
    return [
        f"{f.text} {f.source}" for f in run.check(*overrides, **question) if f.check in ("environment.known_bad", "script.words")
    ]


@pytest.mark.parametrize("entry", load_known_bad(), ids=lambda entry: entry.name)
def test_each_entry_is_found_and_says_why_and_what_instead(
    entry: environment.Entry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if entry.rocm_below:
        cluster = run.folder / "cluster.toml"
        (run.folder / "rocm-5.7.sif").touch()
        cluster.write_text(cluster.read_text().replace("rocm-7.1", "rocm-5.7"))
    monkeypatch.setattr(environment, "installed", lambda package: PACKAGES.get(entry.name, {}).get(package, ""))
    script = run.folder / "own.sh"
    script.write_text(SCRIPTS.get(entry.name, "poro train run.toml") + "\n")
    variables = {entry.variable: (entry.values or ("x",))[0]} if entry.variable and not entry.unset else {}
    found = sentences(run, "parallel.tensor=2", script=script, variables=variables)
    assert any(entry.why in text and entry.instead in text and entry.source in text for text in found), found


def test_the_settings_of_a_good_run_are_in_no_entry(run: Run) -> None:
    assert sentences(run, "parallel.tensor=2") == [sentences(run)[0]]
    assert "none is known to go wrong" in sentences(run)[0]


def test_names_are_single_and_sources_are_given() -> None:
    entries = load_known_bad()
    assert len({entry.name for entry in entries}) == len(entries)
    assert all(entry.source and entry.why and entry.instead and entry.colour in ("red", "yellow") for entry in entries)
    assert all(re.compile(entry.script) and re.compile(entry.without) for entry in entries)


def test_what_the_issue_names_is_there() -> None:
    known = {bad.name for bad in load_profile("lumi").known_bad} | {entry.name for entry in load_known_bad()}
    known |= {entry.variable for entry in load_known_bad()}
    assert {"NCCL_NET_GDR_LEVEL", "TE-flash-attention", "asynchronous-saves", "CUDA_DEVICE_MAX_CONNECTIONS"} <= known


@pytest.mark.parametrize(
    ("versions", "is_bad"), [(("2.8.0", "2.8.3"), False), (("2.9", "2.8.4"), False), (("2.8.1", "2.10"), True)]
)
def test_versions_are_compared_as_numbers(
    versions: tuple[str, str], is_bad: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = dict(zip(("transformer-engine", "flash-attn"), versions, strict=True))
    monkeypatch.setattr(environment, "installed", lambda package: packages.get(package, ""))
    assert any("square of the length" in text for text in sentences(run)) == is_bad


def test_rocm_is_told_by_the_installed_torch_where_no_image_names_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "installed", lambda package: "2.6.0+rocm6.2.4" if package == "torch" else "")
    found = sentences(run, cluster="lumi")
    assert any("checkpoint.asynchronous = true with ROCm 6.2.4, below 7.1" in text for text in found)
    monkeypatch.setattr(environment, "installed", lambda package: "")
    assert any(
        text.startswith("not checked: what goes wrong with some releases of ROCm") for text in sentences(run, cluster="lumi")
    )


def test_without_a_cluster_the_partition_tells_it(run: Run) -> None:
    script = run.folder / "own.sh"
    script.write_text("#SBATCH -p standard-g\nexport NCCL_NET_GDR_LEVEL=SYS\n")
    assert any("NCCL_NET_GDR_LEVEL=SYS" in text for text in sentences(run, script=script, cluster=""))


def test_without_any_cluster_what_hangs_on_one_is_yellow(run: Run) -> None:
    (found,) = run.of("environment.known_bad", cluster="", variables={"NCCL_NET_GDR_LEVEL": "PHB"})
    assert (found.colour, "on lumi: jobs of several nodes hang" in found.text) == ("yellow", True)
