"""More than 5,000 mutated headers, index files and checkpoints: each is refused by one kind of error, or read; none allocates."""

import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_poro.conversion import MegatronLM, to_megatron
from megatron_poro.conversion.huggingface import open_huggingface
from megatron_poro.conversion.megatron import open_as
from megatron_poro.conversion.opening import open_weights
from megatron_poro.errors import ConversionError
from tests.conversion.llamas import LLAMA, save_llama, save_sharded
from tests.conversion.strangers import ALLOWED_MB, FOR_MEGATRON_LM, peak_mb, read_all

NUMBERS: list[Any] = [0, 1, -1, 7, 511, 2**31, 2**53, 2**62, 2**63, 2**64, 10**30, 1.5, None, True, "8", [], {}, "\u0000"]


def try_all(mutants: int, write: Callable[[random.Random], None], read: Callable[[], None]) -> tuple[int, int]:
    """How many mutants were refused and how many read; anything else than ConversionError fails the test."""
    chance, before, refused = random.Random(mutants), peak_mb(), 0
    for _ in range(mutants):
        write(chance)
        try:
            read()
        except ConversionError:
            refused += 1
    assert peak_mb() - before < ALLOWED_MB
    return refused, mutants - refused


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(len(data))
        kind = chance.randrange(6)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place] = chance.choice([0, 0xFF, 0x80, 0x7F, *range(32, 48)])
        elif kind == 2:
            data[place : place + 8] = struct.pack("<q", chance.choice([-1, 2**31, 2**40, 2**62, -(2**63)]))
        elif kind == 3:
            del data[place : place + chance.choice([1, 4, 100])]
        elif kind == 4:
            data[place:place] = chance.randbytes(chance.choice([1, 4, 9]))
        else:
            other = chance.randrange(len(data))
            data[place : place + 16] = data[other : other + 16]
        data = data or bytearray(b"\0")
    return bytes(data)


def mutate_json(value: Any, chance: random.Random) -> Any:
    """The value with one of its leaves, keys or branches changed."""
    if isinstance(value, dict) and value and chance.random() < 0.95:
        key = chance.choice(list(value))
        changed = dict(value)
        if chance.random() < 0.1:
            changed[chance.choice(["", "x", "../x", "model.norm.weight"])] = changed.pop(key)
        else:
            changed[key] = mutate_json(value[key], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], mutate_json(value[place], chance), *value[place + 1 :]]
    if type(value) is int and chance.random() < 0.5:
        return value + chance.choice([-1, 1, 4, -4, 2**32])
    if isinstance(value, str) and chance.random() < 0.5:
        return chance.choice(["F32", "BF16", "I8", "F4", "../a", "/etc/passwd", "a.safetensors", value + "x", value[:-1]])
    return chance.choice(NUMBERS)


def test_mutated_safetensors_headers(tmp_path: Path) -> None:
    directory = save_llama(tmp_path / "hf")
    path = directory / "model.safetensors"
    sound = path.read_bytes()
    length = struct.unpack("<Q", sound[:8])[0]
    header, numbers = json.loads(sound[8 : 8 + length]), sound[8 + length :]

    def write(chance: random.Random) -> None:
        if chance.random() < 0.3:
            opening = mutate_bytes(sound[: 8 + length], chance)
            path.write_bytes(opening + numbers)
            return
        text = json.dumps(mutate_json(header, chance)).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + numbers)

    refused, read = try_all(2500, write, lambda: read_all(open_huggingface(directory)))
    assert refused > 1000
    assert read < 1000


def test_mutated_index_files(tmp_path: Path) -> None:
    directory = save_sharded(tmp_path / "hf")
    path = directory / "model.safetensors.index.json"
    sound = path.read_bytes()

    def write(chance: random.Random) -> None:
        whole = chance.random() < 0.5
        path.write_bytes(json.dumps(mutate_json(json.loads(sound), chance)).encode() if whole else mutate_bytes(sound, chance))

    refused, _ = try_all(700, write, lambda: read_all(open_huggingface(directory)))
    assert refused > 300


def test_mutated_checkpoint_metadata(tmp_path: Path) -> None:
    to_megatron(save_llama(tmp_path / "hf"), tmp_path / "megatron")
    path = tmp_path / "megatron" / ".metadata"
    sound = path.read_bytes()

    def write(chance: random.Random) -> None:
        path.write_bytes(mutate_bytes(sound, chance))

    refused, _ = try_all(1500, write, lambda: read_all(open_as(path.parent, LLAMA)))
    assert refused > 700


def test_mutated_chunks_and_rank_files(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", FOR_MEGATRON_LM)
    to_megatron(source, tmp_path / "lm", megatron_lm=MegatronLM("torch"))
    path = tmp_path / "lm" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    sound = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        end = archive.getinfo("archive/data/0").header_offset  # the pickle lies before
    listing = sound.rindex(b"archive/version") - 10_000

    def write(chance: random.Random) -> None:
        if chance.random() < 0.5:
            path.write_bytes(mutate_bytes(sound[:end], chance)[:end].ljust(end, b"\0") + sound[end:])
        else:
            path.write_bytes(sound[:listing] + mutate_bytes(sound[listing:], chance))

    refused, _ = try_all(1000, write, lambda: read_all(open_weights(tmp_path / "lm", like=FOR_MEGATRON_LM)))
    assert refused > 400
