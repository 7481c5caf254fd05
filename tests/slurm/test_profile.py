"""Cluster profiles are data: every one of ours is complete, a user's own changes one of them."""

from pathlib import Path
from typing import Any

import pytest

from megatron_poro.errors import ConfigError
from megatron_poro.slurm.profile import NAMES, load_profile


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_a_profile_says_why_and_where_that_was_read(name: str) -> None:
    profile = load_profile(name)
    entries: list[Any] = [*profile.sbatch, *profile.srun, *profile.environment, *profile.partitions, *profile.known_bad]
    for entry in entries:
        assert entry.why, entry
        assert entry.source, entry


def test_lumi_gives_each_gcd_its_own_seven_cores() -> None:
    lumi = load_profile("lumi")
    (binding,) = [option.option for option in lumi.srun if "mask_cpu" in option.option]
    masks = [int(mask, 16) for mask in binding.partition("mask_cpu:")[2].split(",")]
    assert len(masks) == lumi.devices_per_node
    assert all(mask.bit_count() == 7 for mask in masks)
    assert sum(masks) == sum(1 << core for core in range(64) if core % 8)  # disjoint, and without each group's first core


def test_a_file_of_ones_own_changes_a_profile_line_by_line(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'base = "lumi"\naccount = "project_7"\n'
        '[[sbatch]]\noption = "--mem=400G"\nwhy = "less"\n'
        '[[environment]]\nname = "HSA_ENABLE_SDMA"\nvalue = "1"\nwhy = "tried"\n'
        '[[environment]]\nname = "MINE"\nvalue = "yes"\nwhy = "new"\n'
        "[node_check]\nslower_percent = 30.0\n"
    )
    profile, base = load_profile(str(own)), load_profile("lumi")
    assert profile.account == "project_7"
    assert [option.option for option in profile.sbatch if option.option.startswith("--mem")] == ["--mem=400G"]
    assert len(profile.sbatch) == len(base.sbatch)
    values = {variable.name: variable.value for variable in profile.environment}
    assert (values["HSA_ENABLE_SDMA"], values["MINE"], values["OMP_NUM_THREADS"]) == ("1", "yes", "1")
    assert (profile.node_check.slower_percent, profile.node_check.links) == (30.0, base.node_check.links)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "summit"', r"base: 'summit' is none of lumi"),
        ('base = "lumi"\npartitio = "x"', r"partitio: unknown key; did you mean 'partition'\?"),
        ('base = "lumi"\n[[sbatch]]\noption = "--mem=1G"', r"sbatch\[\d+\]\.why: missing"),
        ("devices_per_node = 8", "device: missing"),
        ('base = "lumi"\n[[environment]]\nname = "A; touch x"\nvalue = "1"\nwhy = "no"', "'A; touch x' is no name that a variable"),
        ("base = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_profile(str(own))


def test_a_profile_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"no such profile; there are lumi, generic-nvidia, .*, local, test"):
        load_profile("frontier")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile("missing.toml")
