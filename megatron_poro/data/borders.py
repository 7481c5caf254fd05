"""Where documents start within sequences of tokens, and by which token they end."""

from dataclasses import replace
from typing import Any

import numpy as np

from data_indexing.manifest import load_manifest
from megatron_poro.config.schema import DataConfig
from megatron_poro.data.permutation import Integers
from megatron_poro.errors import ConfigError

NO_EOD = -1


def look_up_eod(config: DataConfig) -> DataConfig:
    """The section with the end-of-document token filled in from the manifests, where it is asked for and not given.

    Raises ConfigError when a pair's manifest does not name it, or two pairs end documents by different tokens.
    """
    if config.eod_token_id != NO_EOD or not (config.reset_attention_mask or config.reset_position_ids):
        return config
    pairs = {f"data.sources[{n}] ({source.name})": source.path for n, source in enumerate(config.sources)}
    pairs |= {f"data.validation[{n}] ({held.name})": held.path for n, held in enumerate(config.validation) if held.path}
    found = {key: _eod_of(path) for key, path in pairs.items()}
    problems = [f"{key}: {eod}; {_WAY_OUT}" for key, eod in found.items() if isinstance(eod, str)]
    tokens = {eod for eod in found.values() if isinstance(eod, int)}
    if not problems and len(tokens) > 1:
        listed = ", ".join(f"{key} by {eod}" for key, eod in found.items())
        problems = [f"data.eod_token_id: documents end by different tokens ({listed}); tokenise them alike, or set the key"]
    if problems:
        raise ConfigError(problems)
    return replace(config, eod_token_id=tokens.pop())


_WAY_OUT = "set data.eod_token_id, or leave out data.reset_attention_mask and data.reset_position_ids"


def _eod_of(path: str) -> int | str:
    """The token that ends a pair's documents, or why it is not known."""
    manifest = load_manifest(path)
    if manifest is None:
        return f"{path} has no manifest that names the token its documents end by"
    if manifest.policy is None:
        return f"{path} was merged from pairs without a manifest, so the token its documents end by is not known"
    if manifest.policy.eod_id is None:
        return f"{path} was tokenised without a token at the end of documents (--eod none)"
    return manifest.policy.eod_id


def document_starts(tokens: np.ndarray[Any, np.dtype[np.integer[Any]]], eod_token_id: int) -> Integers:
    """Where documents start in the rows of `tokens` [batch, seq] laid behind each other, and the end: [documents + 1].

    A row starts a document, and so does every token that follows an end-of-document token.
    """
    batch, length = tokens.shape
    after_eod = np.flatnonzero(tokens.reshape(-1) == eod_token_id) + 1
    return np.union1d(np.arange(batch + 1) * length, after_eod)


def document_positions(starts: Integers) -> Integers:
    """Each token's position within its document [tokens]."""
    positions: Integers = np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))
    return positions
