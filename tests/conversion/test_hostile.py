"""Files from strangers: nothing in them runs, leaves its folder, or makes the reader allocate, hang or crash."""

import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_poro.conversion import Like, MegatronLM, to_hf, to_megatron
from megatron_poro.conversion.huggingface import open_huggingface
from megatron_poro.conversion.megatron import open_as
from megatron_poro.conversion.opening import open_weights
from megatron_poro.conversion.safe_pickle import fields
from megatron_poro.conversion.safetensors_file import read_header
from megatron_poro.conversion.torch_archive import read_archive
from megatron_poro.errors import ConversionError
from megatron_poro.topology import Layout
from tests.conversion.llamas import LLAMA, random_tensors, save_llama, save_sharded
from tests.conversion.strangers import ALLOWED_MB, FOR_MEGATRON_LM, peak_mb, read_all


class Hostile:
    """Unpickles to a call."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize("call", [os.system, eval, torch.load, getattr, print])
@pytest.mark.parametrize("where", ["pytorch_model.bin", "rank file", "common.pt"])
def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path, where: str, call: Any) -> None:
    hostile = Hostile(call, f"touch {tmp_path / 'ran'}")
    source = save_llama(tmp_path / "hf", FOR_MEGATRON_LM)
    if where == "pytorch_model.bin":
        (source / "model.safetensors").unlink()
        torch.save(random_tensors() | {"x": hostile}, source / where)
    else:
        to_megatron(source, tmp_path / "lm", megatron_lm=MegatronLM("torch" if where == "rank file" else "torch_dist"))
        release = tmp_path / "lm" / "release"
        path = release / "common.pt" if where == "common.pt" else release / "mp_rank_00" / "model_optim_rng.pt"
        torch.save(torch.load(path, weights_only=False) | {"rng_state": hostile}, path)
    with pytest.raises(ConversionError, match=r"refuses to load .*; no checkpoint needs it"):
        read_all(open_weights(source if where == "pytorch_model.bin" else tmp_path / "lm", like=FOR_MEGATRON_LM))
    assert not (tmp_path / "ran").exists()


def test_what_megatron_lm_pickles_beside_the_weights_is_named_and_never_made(tmp_path: Path) -> None:
    import argparse
    import signal

    import numpy as np

    beside = {
        "args": argparse.Namespace(a=1, path=Path("x"), exit_signal=signal.SIGTERM),
        "rng": np.random.default_rng(0).integers(9, size=9),
    }
    torch.save({**beside, "state": random.Random(1).getstate(), "w": torch.arange(3)}, tmp_path / "x.pt")
    tree = read_archive(tmp_path / "x.pt")
    args = fields(tree["args"])
    assert type(tree["rng"]).__name__ == type(args["path"]).__name__ == "Inert"
    assert args["a"] == 1
    assert torch.equal(tree["w"].read(), torch.arange(3))


BOMBS = {
    "a place in memory that is far away": b"\x80\x02}r\xff\xff\xff\x7f.",
    "the same as text": b"\x80\x02Np4000000000\n.",
    "the same with underscores": b"p3_0_0_0_0_0_0_0_0\n.",
    "a key that is nested two million times": b"\x80\x02})" + b"\x85" * 2_000_000 + b"Ns.",
    "a key whose hash takes 2^64 steps": b"\x80\x02})" + b"2\x86" * 64 + b"Ns.",
    "the same by memory": b"\x80\x02})" + b"".join(b"q%ch%ch%c\x86" % (n, n, n) for n in range(64)) + b"Ns.",
    "a dictionary that is made of such a key": b"\x80\x02ccollections\nOrderedDict\n]])" + b"2\x86" * 64 + b"aNaa\x85R.",
    "five million sets": b"\x80\x04" + b"\x8f" * 5_000_000 + b".",
    "ten million dictionaries": b"\x80\x02" + b"}" * 10_000_000 + b".",
    "a string longer than the file": b"\x80\x02X\xff\xff\xff\x7fx.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a state for a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00xNsb.",
    "a state for a class": b"\x80\x02cpathlib\nPosixPath\n}X\x01\x00\x00\x00xNsb.",
    "a call of a dictionary": b"\x80\x02})R.",
    "an item for a number": b"\x80\x02K\x01K\x02K\x03s.",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_is_made_to_crash_hang_or_fill_the_memory_is_refused(tmp_path: Path, kind: str) -> None:
    source = save_llama(tmp_path / "hf")
    (source / "model.safetensors").unlink()
    before = peak_mb()
    with zipfile.ZipFile(source / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", BOMBS[kind])
    (tmp_path / ".metadata").write_bytes(BOMBS[kind])
    for read in (lambda: open_huggingface(source), lambda: open_as(tmp_path, LLAMA)):
        with pytest.raises(ConversionError, match=r"damaged|holds no|lacks|refuses"):
            read()
    assert peak_mb() - before < ALLOWED_MB


class Planted:
    """Pickles as an object of another class, with a state of one's own."""

    def __init__(self, call: Any, args: tuple[Any, ...], state: Any = None) -> None:
        self.made = (call, args) if state is None else (call, args, state)

    def __reduce__(self) -> Any:
        return self.made


def test_a_storage_that_a_pickle_describes_itself_is_no_storage(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(bytes(511 * 32 * 4))
    import argparse

    record = Planted(argparse.Namespace, (), {"path": str(secret), "start": 0, "num_bytes": 511 * 32 * 4, "crc32": None})
    storage = Planted(argparse.Namespace, (), {"record": record, "dtype": torch.float32, "num_numbers": 511 * 32})
    tensor = Planted(torch._utils._rebuild_tensor_v2, (storage, 0, (511, 32), (32, 1), False, {}))
    source = save_llama(tmp_path / "hf")
    (source / "model.safetensors").unlink()
    with zipfile.ZipFile(source / "pytorch_model.bin", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"lm_head.weight": tensor}, protocol=2))
    with pytest.raises(ConversionError, match="a tensor without storage"):
        open_huggingface(source)


def test_metadata_cannot_change_what_the_program_itself_uses(tmp_path: Path) -> None:
    to_megatron(save_llama(tmp_path / "hf"), tmp_path / "megatron")
    path = tmp_path / "megatron" / ".metadata"
    # _get_layout, BUILD {"cache": {}}, POP, then the genuine content.
    planted = b"\x80\x04ctorch.serialization\n_get_layout\n}\x8c\x05cache}sb0" + path.read_bytes()[2:]
    path.write_bytes(planted)
    with pytest.raises(ConversionError, match="is damaged"):
        open_as(path.parent, LLAMA)


def test_a_model_of_a_thousand_million_layers_is_refused_at_once(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", config={"num_hidden_layers": 10**9})
    with pytest.raises(ConversionError, match=r"num_layers: 1000000000 is out of range"):
        open_huggingface(source)


@pytest.mark.parametrize("name", ["kv_channels", "num_layers", "norm_epsilon"])
def test_arguments_of_the_wrong_kind_are_refused(tmp_path: Path, name: str) -> None:
    source = save_llama(tmp_path / "hf", FOR_MEGATRON_LM)
    to_megatron(source, tmp_path / "lm", megatron_lm=MegatronLM("torch"))
    path = tmp_path / "lm" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    for wrong in ({"a": 1}, [1], -1):
        setattr(state["args"], name, wrong)
        torch.save(state, path)
        try:
            read_all(open_weights(tmp_path / "lm", like=FOR_MEGATRON_LM))
        except ConversionError as error:
            assert "arguments" in str(error)
    torch.save(state | {"args": "x"}, path)
    with pytest.raises(ConversionError, match="arguments"):
        open_weights(tmp_path / "lm", like=FOR_MEGATRON_LM)


def test_numbers_of_eight_bytes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", FOR_MEGATRON_LM)
    to_megatron(source, tmp_path / "lm", megatron_lm=MegatronLM("torch"))
    path = tmp_path / "lm" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    state["model"] = {name: tensor.double() for name, tensor in state["model"].items() if tensor is not None}
    torch.save(state, path)
    with pytest.raises(ConversionError, match=r"holds torch\.float64"):
        to_hf(tmp_path / "lm", tmp_path / "out", like=Like(source))


def test_a_layer_with_a_number_of_five_thousand_digits_is_no_layer(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", FOR_MEGATRON_LM)
    to_megatron(source, tmp_path / "lm", megatron_lm=MegatronLM("torch"))
    path = tmp_path / "lm" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(path, weights_only=False)
    state["model"]["decoder.layers." + "9" * 5000 + ".mlp.linear_fc1.weight"] = torch.zeros(1)
    torch.save(state, path)
    with pytest.raises(ConversionError, match="which no Llama has"):
        open_weights(tmp_path / "lm", like=FOR_MEGATRON_LM)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    source, tensors = save_llama(tmp_path / "hf"), random_tensors()
    (source / "model.safetensors").unlink()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, source / "pytorch_model.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    to_megatron(source, tmp_path / "megatron")
    assert (tmp_path / "megatron").is_dir()


def test_what_lies_where_a_target_is_written_is_not_touched_unless_a_conversion_left_it(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letter").write_text("dear")
    (tmp_path / ".one.partial").symlink_to(tmp_path / "precious")
    (tmp_path / ".two.partial").mkdir()
    (tmp_path / ".two.partial" / "letter").write_text("dear")
    for name in ("one", "two"):
        with pytest.raises(ConversionError, match="is not what a conversion left"):
            to_megatron(source, tmp_path / name)
        assert (tmp_path / f".{name}.partial" / "letter").read_text() == "dear"


def test_a_single_file_is_taken_before_an_index_as_transformers_does(tmp_path: Path) -> None:
    source = save_sharded(tmp_path / "hf")
    save_llama(tmp_path / "other", tensors={name: 2 * tensor for name, tensor in random_tensors().items()})
    (tmp_path / "other" / "model.safetensors").rename(source / "model.safetensors")
    found = open_huggingface(source).tensors["model.norm.weight"].read()
    assert torch.equal(found, 2 * random_tensors()["model.norm.weight"])


def test_a_file_of_before_torch_1_6_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf")
    (source / "model.safetensors").unlink()
    torch.save(random_tensors(), source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(ConversionError, match=r"no archive of torch 1\.6 or later"):
        open_huggingface(source)


@pytest.mark.parametrize("sharded", [False, True])
def test_old_pytorch_files_are_converted(tmp_path: Path, sharded: bool) -> None:
    source, tensors = save_llama(tmp_path / "hf"), random_tensors()
    (source / "model.safetensors").unlink()
    names = list(tensors)
    shards = {"a.bin": names[:9], "b.bin": names[9:]} if sharded else {"pytorch_model.bin": names}
    for shard, held in shards.items():
        torch.save({name: tensors[name] for name in held}, source / shard)
    if sharded:
        places = {name: shard for shard, held in shards.items() for name in held}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    to_megatron(source, tmp_path / "megatron")
    proof = to_hf(tmp_path / "megatron", tmp_path / "out")
    assert len(proof["tensors"]) == len(tensors)


PAIR = {"dtype": "F32", "shape": [2]}


def header_of(tensors: dict[str, Any], num_bytes: int) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(num_bytes)


@pytest.mark.parametrize(
    ("tensors", "num_bytes"),
    [
        (
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            12,
        ),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, 12),
        ({"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**82]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}, 8),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 9),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], "x": 1}}, 8),
        ({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, 8),
        ({"a": None}, 0),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(tmp_path: Path, tensors: dict[str, Any], num_bytes: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(header_of(tensors, num_bytes))
    with pytest.raises(ConversionError, match=r"x\.safetensors is damaged"):
        read_header(tmp_path / "x.safetensors")


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(ConversionError, match="twice"):
        read_header(tmp_path / "x.safetensors")


def test_a_full_disk_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_llama(tmp_path / "hf")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ConversionError, match="GB free, out takes"):
        to_megatron(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_layout_is_named_when_a_rank_file_is_for_another(tmp_path: Path) -> None:
    source = save_llama(tmp_path / "hf", FOR_MEGATRON_LM)
    to_megatron(source, tmp_path / "lm", megatron_lm=MegatronLM("torch", Layout(2)))
    release = tmp_path / "lm" / "release"
    (release / "mp_rank_01").rename(release / "mp_rank_02")
    with pytest.raises(ConversionError, match="tensor rank 1"):
        open_weights(tmp_path / "lm", like=FOR_MEGATRON_LM)


def test_metadata_is_pickle_of_known_classes_alone(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Hostile(os.system, "true")))
    with pytest.raises(ConversionError, match=r"refuses to load posix\.system"):
        open_as(tmp_path, LLAMA)
