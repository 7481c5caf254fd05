"""Are the shards among the pairs of a merge whole: all of one split, none of them twice."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_indexing.errors import DataError
from data_indexing.inputs import Shard, parse_shard
from data_indexing.pairs import Pair

_WAY_OUT = "give all shards of one split once, or --allow-missing-shards"


def check_shards(pairs: Sequence[Pair]) -> None:
    """DataError where pairs made from the same inputs are not all of these, once; a pair that does not know is passed over."""
    wholes: defaultdict[tuple[str, str], list[tuple[Path, Shard]]] = defaultdict(list)
    for pair in pairs:
        made = pair.manifest.tokenization if pair.manifest else None
        if made and made.inputs_sha256:
            wholes[made.inputs_sha256, made.text_field].append((pair.prefix, parse_shard(made.shard)))
    for shards in wholes.values():
        _check_whole(shards)


def _check_whole(shards: Sequence[tuple[Path, Shard]]) -> None:
    first, (_, count) = shards[0]
    found: dict[int, Path] = {}
    for prefix, (number, its_count) in shards:
        place = f"{prefix}: is shard {number}/{its_count} of its inputs"
        if its_count != count:
            raise DataError(f"{place}, {first} is one of {count} shards of the same; {_WAY_OUT}")
        if number in found:
            raise DataError(f"{place}, and so is {found[number]}; {_WAY_OUT}")
        found[number] = prefix
    if len(found) < count:
        missing = next(number for number in range(count) if number not in found)
        others = f"{count - len(found)} of the {count} shards of its inputs are missing, the first is {missing}/{count}"
        raise DataError(f"{first}: {others}; {_WAY_OUT}")
