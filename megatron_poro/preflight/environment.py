"""What the ranks will find in their environment against what is known to go wrong: known_bad.toml, and the cluster's entries."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from typing import Any

from megatron_poro.config import RunConfig
from megatron_poro.config.parse import to_plain
from megatron_poro.preflight.case import Setting, Surroundings
from megatron_poro.preflight.findings import Finding, green, not_checked, red, yellow
from megatron_poro.slurm.profile import NAMES as CLUSTERS
from megatron_poro.slurm.profile import load_profile
from megatron_poro.slurm.script import PLACEHOLDERS


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of known_bad.toml, whose head says what each condition means; an empty one holds always."""

    name: str
    colour: str
    why: str
    instead: str
    source: str
    variable: str = ""
    values: tuple[str, ...] = ()
    unset: bool = False
    device: str = ""
    devices: bool = False
    rocm_below: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, list[Any]] = field(default_factory=dict)
    above: Mapping[str, float] = field(default_factory=dict)
    script: str = ""
    without: str = ""


def load_known_bad() -> tuple[Entry, ...]:
    """The entries of known_bad.toml."""
    text = resources.files("megatron_poro.preflight").joinpath("known_bad.toml").read_text(encoding="utf-8")
    return tuple(Entry(**{**entry, "values": tuple(entry.get("values", ()))}) for entry in tomllib.loads(text)["entries"])


def check_known_bad(around: Surroundings, config: RunConfig | None) -> Iterator[Finding]:
    """Every entry that holds, in the environment, the run file, or the job script."""
    faults = [*_of_cluster(around), *(_report(entry, around) for entry in load_known_bad() if _holds(entry, around, config))]
    yield from faults
    if around.profile and "MI" in around.profile.device and not rocm_release(around):
        yield not_checked(
            "environment.known_bad",
            "what goes wrong with some releases of ROCm: no image's name and no torch here tells the release",
        )
    if not faults:
        yield green("environment.known_bad", f"{len(around.environment)} variables, none is known to go wrong")


def _of_cluster(around: Surroundings) -> Iterator[Finding]:
    """The cluster's own entries; where no cluster is named, those of all, which may not be meant."""
    profiles = [around.profile] if around.profile else [load_profile(name) for name in CLUSTERS]
    for name, bad in ((profile.name, bad) for profile in profiles for bad in profile.known_bad):
        found = around.environment.get(bad.name)
        if found and (not bad.values or found.value in bad.values):
            colour, where = (red, "") if around.profile else (yellow, f" on {name}")
            text = f"{bad.name}={found.value} in {found.where}{where}: {bad.why}; {bad.instead}"
            yield colour("environment.known_bad", text, bad.source)


def _report(entry: Entry, around: Surroundings) -> Finding:
    subject = "script.words" if entry.script else "environment.known_bad"
    found = around.environment.get(entry.variable)
    what = entry.name
    if entry.script and around.script and (match := re.search(entry.script, around.script.text, re.MULTILINE)):
        what = f"{around.script.path.name}: {match[0].strip()!r}"
    elif found:
        what = f"{entry.variable}={found.value} in {found.where}"
    elif entry.variable:
        what = f"{entry.variable} is not set"
    elif entry.keys:
        what = ", ".join(f"{key} = {str(values[0]).lower()}" for key, values in entry.keys.items()) + _release(entry, around)
    return (red if entry.colour == "red" else yellow)(subject, f"{what}: {entry.why}; {entry.instead}", entry.source)


def _release(entry: Entry, around: Surroundings) -> str:
    return f" with ROCm {rocm_release(around)}, below {entry.rocm_below}" if entry.rocm_below else ""


def _holds(entry: Entry, around: Surroundings, config: RunConfig | None) -> bool:
    return all(
        (
            _holds_for_cluster(entry, around),
            _holds_for_variable(entry, around.environment),
            _holds_for_keys(entry, config),
            _holds_for_script(entry, around),
            all(_package_is(name, wanted) for name, wanted in entry.packages.items()),
        )
    )


def _holds_for_cluster(entry: Entry, around: Surroundings) -> bool:
    profile, release = around.profile, rocm_release(around)
    return (
        (not entry.device or (profile is not None and entry.device in profile.device))
        and (not entry.devices or (profile is not None and profile.devices_per_node > 0))
        and (not entry.rocm_below or (release != "" and _number(release) < _number(entry.rocm_below)))
    )


def _holds_for_variable(entry: Entry, environment: Mapping[str, Setting]) -> bool:
    if not entry.variable:
        return True
    found = environment.get(entry.variable)
    return found is None if entry.unset else found is not None and (not entry.values or found.value in entry.values)


def _holds_for_keys(entry: Entry, config: RunConfig | None) -> bool:
    if not entry.keys and not entry.above:
        return True
    if config is None:
        return False
    values = {key: _value_of(config, key) for key in (*entry.keys, *entry.above)}
    return all(values[key] in wanted for key, wanted in entry.keys.items()) and all(
        values[key] > least for key, least in entry.above.items()
    )


def _holds_for_script(entry: Entry, around: Surroundings) -> bool:
    if not entry.script:
        return True
    text = around.script.text if around.script else ""
    mended = bool(entry.without and re.search(entry.without, text, re.MULTILINE))
    return bool(re.search(entry.script, text, re.MULTILINE)) and not mended


def _value_of(config: RunConfig, key: str) -> Any:
    value: Any = to_plain(config)
    for part in key.split("."):
        value = value[part]
    return value


def rocm_release(around: Surroundings) -> str:
    """The release of ROCm that ranks will have: by the image's name, else by the torch that is installed here; empty if unknown."""
    image = around.profile.container.image if around.profile else ""
    text = around.script.text if around.script else ""
    named = re.search(r"rocm-?(\d+\.\d+(?:\.\d+)?)", f"{image}\n{text}")
    return named[1] if named else installed("torch").partition("+rocm")[2]


def installed(package: str) -> str:
    """A package's version here, without importing it; empty when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _package_is(name: str, wanted: str) -> bool:
    found, sign, limit = installed(name), wanted[0], _number(wanted[1:])
    return found != "" and (_number(found) < limit if sign == "<" else _number(found) > limit)


def _number(version: str) -> tuple[int, ...]:
    """The numbers at the start of a version, three of them: 2.8 is 2.8.0."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    parts = [int(part) for part in match[0].split(".")] if match else []
    return (*parts, 0, 0, 0)[:3]


def check_profile(around: Surroundings) -> Iterator[Finding]:
    """A script of one's own sets what the cluster's profile sets, each line of which has its reason."""
    script, profile = around.script, around.profile
    if script is None or profile is None:
        return
    wanted = {variable.name: variable for variable in profile.environment}
    missing = [f"{name}={wanted[name].value}" for name in wanted if name not in script.settings]
    if missing:
        text = f"{script.path.name} does not set {', '.join(missing)}, as profile {profile.name} does; export them"
        yield yellow("environment.profile", f"{text} (`poro launch --dry-run` says what each is for)")
    others = [name for name, variable in wanted.items() if _differs(script.settings.get(name), variable.value)]
    for name in others:
        text = (
            f"{script.path.name} sets {name}={script.settings[name]}, profile {profile.name} {wanted[name].value}: "
            f"{wanted[name].why}"
        )
        yield yellow("environment.profile", text, wanted[name].source)
    if not missing and not others:
        yield green("environment.profile", f"the {len(wanted)} variables of profile {profile.name} are set")


def _differs(found: str | None, wanted: str) -> bool:
    return found is not None and found != wanted and not PLACEHOLDERS.search(wanted)
