"""Ids, vocabulary, tokenizer, and the tokens around documents: all files alike, and like the model that reads them."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_indexing.errors import DataError
from data_indexing.manifest import Policy
from data_indexing.reader import IndexedReader
from data_indexing.tokenizer import TextTokenizer, load_tokenizer
from megatron_poro.preflight.case import Case
from megatron_poro.preflight.findings import Finding, green, not_checked, red, yellow

MEGATRON_MULTIPLE = 128
"""Megatron-LM pads the vocabulary to a multiple of this times the tensor ranks."""
_BLOCKS, _BLOCK_TOKENS = 64, 4096
_DOCUMENTS = 200


def check_tokenizer(case: Case) -> Iterator[Finding]:
    """One tokenizer made all files, the one that lies with the model that the run starts from."""
    records = {key: manifest.tokenizer for key, manifest in case.manifests.items() if manifest.tokenizer}
    hashes = {record.sha256 for record in records.values()}
    model = _model_tokenizer(case)
    if model and hashes and hashes != {model.sha256}:
        other = next(f"{key} by {record.name}" for key, record in records.items() if record.sha256 != model.sha256)
        yield red(
            "tokens.tokenizer",
            f"{other}, another tokenizer than {model.name}'s beside checkpoint.initial; tokenise all with the model's own",
        )
    elif len(hashes) > 1:
        listed = ", ".join(f"{key} by {record.name} ({record.sha256[:12]})" for key, record in records.items())
        yield red("tokens.tokenizer", f"different tokenizers: {listed}; tokenise all with the model's own")
    elif len(records) < len(case.pairs):
        lacking = ", ".join(key for key in case.pairs if key not in records)
        yield not_checked("tokens.tokenizer", f"no manifest names the tokenizer of {lacking}")
    else:
        own = ", that of the start checkpoint's model" if model else ""
        yield green("tokens.tokenizer", f"{next(iter(records.values())).name} for all files{own}")


def _model_tokenizer(case: Case) -> TextTokenizer | None:
    """The tokenizer in the folder that the start checkpoint was converted from, where that lies beside it."""
    name = case.initial_model[1].get("name") if case.initial_model else None
    folder = case.initial.parent / Path(str(name)).name if case.initial and name else None
    has_one = folder and any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model"))
    return load_tokenizer(folder) if folder and has_one else None


def check_vocabulary(case: Case) -> Iterator[Finding]:
    """model.vocab_size against the tokenizer; a padded one would be exported."""
    ours = case.config.model.vocab_size
    sizes = {manifest.tokenizer.vocab_size: key for key, manifest in case.manifests.items() if manifest.tokenizer}
    if not sizes:
        yield not_checked("tokens.vocabulary", f"model.vocab_size ({ours}): no manifest says how many ids the tokenizer has")
        return
    largest = max(sizes)
    multiple = MEGATRON_MULTIPLE * case.config.parallel.tensor
    if largest > ours:
        yield red(
            "tokens.vocabulary",
            f"model.vocab_size ({ours}) is below the {largest} ids of the tokenizer of {sizes[largest]}; take the model's own "
            "tokenizer",
        )
    elif ours > largest and ours == -(-largest // multiple) * multiple:
        yield red(
            "tokens.vocabulary",
            f"model.vocab_size ({ours}) is the tokenizer's {largest} with padding rows (a multiple of {multiple}), which exports "
            f"would carry; set {largest}: the engine pads by itself",
        )
    elif ours > largest:
        yield yellow(
            "tokens.vocabulary", f"model.vocab_size ({ours}) has {ours - largest} rows that the tokenizer ({largest}) has no id for"
        )
    else:
        yield green("tokens.vocabulary", f"{ours}, the tokenizer's")


def check_ids(case: Case) -> Iterator[Finding]:
    """Smallest and largest id in evenly spread blocks of each pair."""
    vocab_size = case.config.model.vocab_size
    sampled = {key: sample for key, path in case.pairs.items() if (sample := _sample_ids(path)) is not None}
    faults = [red("tokens.ids", f"{key}: {text}") for key, sample in sampled.items() if (text := sample.fault(vocab_size))]
    yield from faults
    for key, sample in sampled.items():
        if sample.limit < vocab_size - 1 and key not in case.manifests:
            text = f"{key}: its number type ends at {sample.limit}, model.vocab_size is {vocab_size}; made by another tokenizer?"
            yield yellow("tokens.ids", text)
    if not sampled:
        yield not_checked("tokens.ids", "no token file can be read")
    elif not faults:
        yield green("tokens.ids", f"all sampled ids of {len(sampled)} pairs are below {vocab_size}")


@dataclass(frozen=True)
class _Sample:
    """Ids of a pair: the smallest and largest that were seen, and what the number type could hold; -1 for no whole numbers."""

    smallest: int
    largest: int
    limit: int

    def fault(self, vocab_size: int) -> str:
        """What is wrong with them; empty when nothing is."""
        if self.limit < 0:
            return "its numbers are no whole ones, so no token ids; write the pair again"
        if self.smallest < 0 or self.largest >= vocab_size:
            strange = self.smallest if self.smallest < 0 else self.largest
            return f"holds id {strange}, beyond model.vocab_size ({vocab_size}); it was made by another tokenizer"
        return ""


def _sample_ids(path: str) -> _Sample | None:
    """Sampled ids of a pair; None where it cannot be read, which `data.files` says, or is empty."""
    try:
        with closing(IndexedReader(path)) as reader:
            if reader.dtype.kind == "f":
                return _Sample(0, 0, -1)
            last = max(reader.num_tokens - _BLOCK_TOKENS, 0)
            starts = sorted({last * n // (_BLOCKS - 1) for n in range(_BLOCKS)})
            ids = np.concatenate([reader.read(start, min(_BLOCK_TOKENS, reader.num_tokens - start)) for start in starts])
            return _Sample(int(ids.min()), int(ids.max()), int(np.iinfo(reader.dtype).max)) if ids.size else None
    except (DataError, OSError):
        return None


def check_policy(case: Case) -> Iterator[Finding]:
    """BOS and end of document: as the recipe has them, the same in all files, and really there."""
    policies = {key: manifest.policy for key, manifest in case.manifests.items() if manifest.policy}
    if lacking := [key for key in case.pairs if key not in policies]:
        yield not_checked("tokens.policy", f"no manifest says which tokens open and close documents of {', '.join(lacking)}")
    faults = [*_against_recipe(case, policies), *_against_model(case, policies), *_against_files(case, policies)]
    if len({(policy.bos_id, policy.eod_id) for policy in policies.values()}) > 1:
        listed = ", ".join(f"{key} {_words(policy)}" for key, policy in policies.items())
        faults.append(red("tokens.policy", f"different policies: {listed}; tokenise all alike"))
    yield from faults
    if policies and not faults:
        yield green("tokens.policy", f"{_words(next(iter(policies.values())))} around each document")


def _words(policy: Policy) -> str:
    return (
        f"BOS {policy.bos_id if policy.bos == 'document' else 'none'}, end {policy.eod_id if policy.eod == 'document' else 'none'}"
    )


def _against_recipe(case: Case, policies: dict[str, Policy]) -> Iterator[Finding]:
    """Poro 2's documents begin with BOS and end with the end-of-text token, as `poro data tokenize --preset poro2` puts them."""
    wants_both = case.config.recipe.startswith("poro2")
    for key, policy in policies.items():
        if wants_both and "none" in (policy.bos, policy.eod):
            yield red(
                "tokens.policy",
                f"{key}: {_words(policy)}, but recipe {case.config.recipe} has both; `poro data tokenize --preset poro2`",
            )
        elif policy.eod == "none":
            yield yellow(
                "tokens.policy", f"{key}: no token ends a document, so documents run into each other; tokenise with --eod document"
            )


def _against_model(case: Case, policies: dict[str, Policy]) -> Iterator[Finding]:
    """The start checkpoint remembers the ids of the model's tokenizer."""
    ids: dict[str, Any] = (case.initial_model[1].get("token_ids") or {}) if case.initial_model else {}
    for key, policy in policies.items():
        for name, found in (("bos_token_id", policy.bos_id), ("eos_token_id", policy.eod_id)):
            known = ids.get(name)
            if found is not None and known is not None and found not in (known if isinstance(known, list) else [known]):
                yield red(
                    "tokens.policy",
                    f"{key}: {name} is {found} in the token files, {known} in {case.initial}; take the model's tokenizer",
                )


def _against_files(case: Case, policies: dict[str, Policy]) -> Iterator[Finding]:
    """What the first documents really begin and end with."""
    for key, policy in policies.items():
        counts = _count_ends(case.pairs[key], policy)
        for name, token, found, looked in counts or ():
            if token is not None and found < looked:
                yield red(
                    "tokens.policy",
                    f"{key}: {looked - found} of the first {looked} documents have no {name} {token}, though the manifest says "
                    "so; tokenise again",
                )


def _count_ends(path: str, policy: Policy) -> list[tuple[str, int | None, int, int]] | None:
    """How many of the first documents begin with BOS and end with the end token, and how many were looked at."""
    try:
        with closing(IndexedReader(path)) as reader:
            offsets = reader.document_offsets(0, min(_DOCUMENTS, reader.num_documents)).tolist()
            spans = [(begin, end) for begin, end in pairwise(offsets) if begin < end]
            first = sum(int(reader.read(begin, 1)[0]) == policy.bos_id for begin, _ in spans)
            last = sum(int(reader.read(end - 1, 1)[0]) == policy.eod_id for _, end in spans)
    except (DataError, OSError):
        return None
    return [("BOS", policy.bos_id, first, len(spans)), ("end", policy.eod_id, last, len(spans))]
