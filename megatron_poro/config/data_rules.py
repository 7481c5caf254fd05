"""What can be wrong with the data section before a file is opened: one line a problem, with the key and the way out."""

from collections.abc import Iterator, Sequence
from math import isfinite

from megatron_poro.config.schema import DataConfig, ValidationConfig
from megatron_poro.errors import ConfigError


def check_data(config: DataConfig) -> None:
    """Raises ConfigError with every contradiction of the data section."""
    problems = find_data_problems(config)
    if problems:
        raise ConfigError(problems)


def find_data_problems(config: DataConfig) -> list[str]:
    """Every contradiction of the data section."""
    return [*_find_source_problems(config), *_find_stage_problems(config), *_find_validation_problems(config)]


def _find_source_problems(config: DataConfig) -> Iterator[str]:
    if config.sequence_length < 1:
        yield f"data.sequence_length: {config.sequence_length} is out of range; it must be at least 1"
    if config.eod_token_id < -1:
        yield f"data.eod_token_id: {config.eod_token_id} is no token; give one, or -1 to take it from the manifests"
    if not config.sources:
        yield "data.sources: empty; add a [[data.sources]] table with name, path and weight"
        return
    yield from _find_repeated("data.sources[].name", [source.name for source in config.sources])
    yield from _find_repeated("data.sources[].path", [source.path for source in config.sources])
    keys = [f"data.sources[{n}].weight" for n in range(len(config.sources))]
    yield from _find_bad_weights(keys, [source.weight for source in config.sources], "data.sources")


def _find_stage_problems(config: DataConfig) -> Iterator[str]:
    names = [source.name for source in config.sources]
    length, previous = max(config.sequence_length, 1), 0
    for n, stage in enumerate(config.stages):
        key = f"data.stages[{n}]"
        if stage.from_tokens <= previous:
            yield f"{key}.from_tokens: {stage.from_tokens} is not above {previous}, where the mix before it starts"
        if stage.from_tokens % length:
            way_out = f"take {-(-stage.from_tokens // length) * length}"
            yield f"{key}.from_tokens: {stage.from_tokens} is no multiple of data.sequence_length ({length}); {way_out}"
        for name in sorted(stage.weights.keys() - set(names)):
            yield f"{key}.weights: {name!r} is no source; known: {', '.join(names)}"
        keys = [f"{key}.weights.{name}" for name in stage.weights]
        yield from _find_bad_weights(keys, [*stage.weights.values()], key)
        previous = max(previous, stage.from_tokens)


def _find_bad_weights(keys: Sequence[str], weights: Sequence[float], table: str) -> Iterator[str]:
    for key, weight in zip(keys, weights, strict=True):
        if not (isfinite(weight) and weight >= 0):
            yield f"{key}: {weight} is out of range; it must be at least 0"
    if not any(weights):
        yield f"{table}: every weight is 0; give at least one source a share"


def _find_validation_problems(config: DataConfig) -> Iterator[str]:
    names = [source.name for source in config.sources]
    yield from _find_repeated("data.validation[].name", [held.name for held in config.validation])
    yield from _find_repeated("data.validation[].source", [held.source for held in config.validation if held.source])
    for n, held in enumerate(config.validation):
        yield from _find_held_out_problems(f"data.validation[{n}]", held, names)
        for source in config.sources:
            if held.path == source.path:
                yield f"data.validation[{n}].path: training reads it as {source.name!r}; give source and last_sequences"


def _find_held_out_problems(key: str, held: ValidationConfig, names: Sequence[str]) -> Iterator[str]:
    if bool(held.path) == bool(held.source):
        yield f"{key} ({held.name}): give either path or source, {'not both' if held.path else 'there is neither'}"
    elif held.path and held.last_sequences:
        yield f"{key}.last_sequences: {held.last_sequences} needs source; a pair of its own (path) is held out whole"
    elif held.source and held.source not in names:
        yield f"{key}.source: {held.source!r} is no source; known: {', '.join(names)}"
    elif held.source and held.last_sequences < 1:
        yield f"{key}.last_sequences: {held.last_sequences} holds nothing out of {held.source!r}; give at least 1"


def _find_repeated(key: str, names: Sequence[str]) -> Iterator[str]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{key}: {name!r} stands {names.count(name)} times; it may stand once"
