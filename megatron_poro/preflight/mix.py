"""What the run reads of each source, from the exact ledger, and what it holds out."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_indexing.manifest import Manifest
from megatron_poro.data import SourcePlan, fingerprint_of
from megatron_poro.data.plan import EPOCH_LIMIT
from megatron_poro.preflight.case import Case
from megatron_poro.preflight.findings import Finding, green, not_checked, red, yellow

MOST_HELD_OUT = 0.01
"""Share of a source: Megatron-LM's default split (969, 30, 1) keeps 3.1 % of all documents from ever being trained on."""
REPEATS = "Muennighoff et al. 2023, arXiv:2305.16264"
NO_DATA = "the token files have to open first"


def check_epochs(case: Case) -> Iterator[Finding]:
    """More than once is to be meant; more than EPOCH_LIMIT times is worth little."""
    if case.plan is None:
        yield not_checked("mix.epochs", NO_DATA)
        return
    repeated = [source for source in case.plan.sources if source.read.epochs > 1]
    for source in repeated:
        epochs, index = float(source.read.epochs), _index(case, source)
        held = (
            f"data.sources[{index}] ({source.read.name}): {source.read.tokens:,} tokens of the run come from {source.tokens:,} in "
            "its file"
        )
        if epochs > EPOCH_LIMIT:
            text = f"{held}, {epochs:.2f} epochs, above {EPOCH_LIMIT}; lower its weight, add text, or allow mix.epochs"
            yield red("mix.epochs", text, REPEATS)
        else:
            yield yellow(
                "mix.epochs", f"{held}, {epochs:.2f} epochs: some text is read more than once; lower its weight or add text"
            )
    if not repeated:
        most = max(case.plan.sources, key=lambda source: source.read.epochs)
        yield green("mix.epochs", f"no text is read twice; at most {float(most.read.epochs):.3f} epochs ({most.read.name})")


def _index(case: Case, source: SourcePlan) -> int:
    return [each.name for each in case.config.data.sources].index(source.read.name)


def check_length(case: Case) -> Iterator[Finding]:
    """Tokens read against tokens there, and sources that nobody reads."""
    if case.plan is None:
        yield not_checked("mix.length", NO_DATA)
        return
    unread = [source.read.name for source in case.plan.sources if not source.read.samples]
    for name in unread:
        yield yellow("mix.length", f"source {name}: the run reads nothing of it; give it a weight, or leave it out")
    there, unused = sum(source.tokens for source in case.plan.sources), sum(source.unused_tokens for source in case.plan.sources)
    if not unread:
        yield green(
            "mix.length",
            f"{case.duration.num_steps:,} steps read {case.plan.tokens:,} tokens; of the {there:,} in the files {unused:,} are "
            "never read",
        )


def check_sources(case: Case) -> Iterator[Finding]:
    """One merged file has no mix that anybody could check; the same file twice has one that nobody meant."""
    sources = case.config.data.sources
    if len(sources) == 1:
        parts = case.manifests[key].parts if (key := next(iter(case.pairs))) in case.manifests else ()
        merged = f", merged from {len(parts)} files" if len(parts) > 1 else ""
        yield yellow(
            "mix.sources",
            f"data.sources: all text is one pair, {sources[0].path}{merged}: the ledger cannot tell what was read of what; give "
            "each kind of text a source and a weight",
        )
    content = _contents(case)
    twice = [(one, other) for n, one in enumerate(content) for other in list(content)[:n] if content[one] == content[other]]
    for one, other in twice:
        yield red(
            "mix.sources",
            f"sources {other} and {one} are the same text; leave one of them out, or its share is not what the weights say",
        )
    if case.data is None:
        yield not_checked("mix.sources", NO_DATA)
    elif len(sources) > 1 and not twice:
        yield green("mix.sources", f"{len(sources)} sources of different content")


def _contents(case: Case) -> dict[str, str]:
    """Each source's content, by name; empty where the files do not open."""
    return {source.config.name: source.fingerprint for source in case.data.sources} if case.data else {}


def check_held_out(case: Case) -> Iterator[Finding]:
    """There is something to validate on."""
    if case.config.data.validation:
        yield green("heldout.sets", ", ".join(held.name for held in case.config.data.validation))
    else:
        yield yellow(
            "heldout.sets", "data.validation: empty, so nothing shows what the model forgets; hold out the end of each source"
        )


def check_disjoint(case: Case) -> Iterator[Finding]:
    """A held-out pair is no source, and came from no input of one. Ends of sources are disjoint by construction."""
    own = {f"data.validation[{n}] ({held.name})": held.path for n, held in enumerate(case.config.data.validation) if held.path}
    faults = [finding for key, path in own.items() for finding in _overlaps(case, key, path)]
    yield from faults
    if unknown := [key for key in own if key not in case.manifests]:
        yield not_checked(
            "heldout.disjoint", f"where {', '.join(unknown)} came from: no manifest; only equal files would have been seen"
        )
    elif not faults:
        yield green("heldout.disjoint", "no held-out text is trained on, as far as files and their inputs tell")


def _overlaps(case: Case, key: str, path: str) -> Iterator[Finding]:
    way_out = "hold out the end of the source: `source` and `last_sequences`"
    held = next((part for name, part in case.data.validation.items() if f"({name})" in key), None) if case.data else None
    content = fingerprint_of(held.sequences.reader) if held else ""
    for n, source in enumerate(case.config.data.sources):
        where = f"data.sources[{n}] ({source.name})"
        same_file = Path(f"{path}.bin").resolve() == Path(f"{source.path}.bin").resolve()
        if same_file or (content and _contents(case).get(source.name) == content):
            yield red("heldout.disjoint", f"{key}: holds the text of {where}; {way_out}")
        elif shared := _shared_inputs(case.manifests, key, where):
            yield red(
                "heldout.disjoint",
                f"{key} and {where} were both made from {shared}; split the text before tokenising, or {way_out}",
            )


def _shared_inputs(manifests: Mapping[str, Manifest], one: str, other: str) -> str:
    """The first input file, or part of a merge, that two pairs share; empty where there is none or nobody knows."""
    if one not in manifests or other not in manifests:
        return ""
    inputs = [{(item.sha256, item.first_byte): item.name for item in manifests[key].inputs} for key in (one, other)]
    parts = [{part.bin_sha256: part.name for part in manifests[key].parts if part.bin_sha256} for key in (one, other)]
    own = {manifests[one].bin_sha256: one} | parts[0]
    found = [inputs[0][key] for key in inputs[0].keys() & inputs[1].keys()] + [own[key] for key in own.keys() & parts[1].keys()]
    return min(found, default="")


def check_share(case: Case) -> Iterator[Finding]:
    """Held-out text is text that is paid for and never trained on."""
    if case.plan is None:
        yield not_checked("heldout.share", NO_DATA)
        return
    large = [source for source in case.plan.sources if source.held_out_tokens > MOST_HELD_OUT * source.tokens]
    for source in large:
        yield yellow(
            "heldout.share",
            f"source {source.read.name}: {source.held_out_tokens:,} of {source.tokens:,} tokens "
            f"({source.held_out_tokens / source.tokens:.1%}) are held out and never trained on, above {MOST_HELD_OUT:.0%}; lower "
            "data.validation[].last_sequences",
        )
    if not large:
        total = sum(source.held_out_tokens for source in case.plan.sources)
        yield green("heldout.share", f"{total:,} tokens are held out, at most {MOST_HELD_OUT:.0%} of a source")
