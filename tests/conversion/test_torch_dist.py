"""The distributed checkpoint format: written and read without megatron-core, and never trusted."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import checkpoint as dcp

from megatron_poro.conversion import check_metadata_is_safe, read_checkpoint_index
from megatron_poro.errors import ConversionError
from tests.conversion.chunks import write_checkpoint

MATRIX = torch.arange(6 * 8, dtype=torch.float32).reshape(6, 8)
QUARTERS = [(row, column) for row in (0, 3) for column in (0, 4)]


def save_quarters(directory: Path, quarters: list[tuple[int, int]] = QUARTERS) -> Path:
    """MATRIX in chunks of 3 x 4."""
    chunks = [("matrix", MATRIX[row : row + 3, column : column + 4], (row, column), (6, 8)) for row, column in quarters]
    return write_checkpoint(directory, chunks)


def edit_metadata(directory: Path, change: Callable[[Any], None]) -> None:
    """Load `.metadata`, change it in place, and write it back."""
    path = directory / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


@pytest.fixture(scope="module")
def quarters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_quarters(tmp_path_factory.mktemp("quarters"))


@given(st.data())
def test_any_region_is_put_together_from_its_chunks(quarters: Path, data: st.DataObject) -> None:
    bounds = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in (6, 8)]
    region = tuple(slice(*pair) for pair in bounds)
    assert torch.equal(read_checkpoint_index(quarters).read_tensor("matrix", region), MATRIX[region])


def test_torch_reads_what_was_written(quarters: Path) -> None:
    state = {"matrix": torch.zeros(6, 8)}
    dcp.load(state, checkpoint_id=quarters, no_dist=True)
    assert torch.equal(state["matrix"], MATRIX)


def test_what_torch_writes_is_read(tmp_path: Path) -> None:
    dcp.save({"matrix": MATRIX, "note": "an object"}, checkpoint_id=tmp_path, no_dist=True)
    index = read_checkpoint_index(tmp_path)
    assert torch.equal(index.read_tensor("matrix"), MATRIX)
    assert index.objects == ("note",)


def test_files_of_several_writers_make_one_tensor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [("matrix", MATRIX[row : row + 1], (row, 0), (6, 8)) for row in range(6)], per_file=1)
    assert len(list(tmp_path.glob("__0_*.distcp"))) == 6
    assert torch.equal(read_checkpoint_index(tmp_path).read_tensor("matrix"), MATRIX)


class Hostile:
    """Unpickles to a call."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


@pytest.mark.parametrize("call", [os.system, eval, torch.load, getattr])
def test_metadata_that_would_run_code_is_refused_unrun(tmp_path: Path, call: Any) -> None:
    save_quarters(tmp_path)
    hostile = Hostile(call, f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_metadata(tmp_path, lambda metadata: setattr(metadata, "planner_data", hostile))
    with pytest.raises(ConversionError, match=r"refuses to load .* from .*\.metadata"):
        check_metadata_is_safe(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_metadata_with_a_dotted_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x04\x8c\x05torch\x8c\x12serialization.load\x93.")
    with pytest.raises(ConversionError, match=r"refuses to load torch\.serialization\.load"):
        check_metadata_is_safe(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({}), pickle.dumps(None)])
def test_damaged_metadata_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ConversionError, match="is damaged"):
        check_metadata_is_safe(tmp_path)


def test_a_folder_without_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="torch_dist"):
        check_metadata_is_safe(tmp_path)


def change_places(**values: Any) -> Callable[[Any], None]:
    """An edit that sets attributes of every chunk's place."""

    def change(metadata: Any) -> None:
        for place in metadata.storage_data.values():
            vars(place).update(values)

    return change


@pytest.mark.parametrize(
    ("values", "culprit"),
    [
        ({"relative_path": "../secret"}, "no file of the folder"),
        ({"relative_path": "/etc/passwd"}, "no file of the folder"),
        ({"relative_path": "gone.distcp"}, "gone.distcp is missing"),
        ({"offset": 10**9}, "has .* bytes, but"),
        ({"offset": -1}, "has .* bytes, but"),
        ({"length": 10**9}, "has .* bytes, but"),
        ({"length": "long"}, "is damaged"),
        ({"transform_descriptors": ["zstd"]}, "stored transformed"),
    ],
)
def test_a_place_outside_the_folder_or_its_files_is_refused(tmp_path: Path, values: dict[str, Any], culprit: str) -> None:
    save_quarters(tmp_path)
    edit_metadata(tmp_path, change_places(**values))
    with pytest.raises(ConversionError, match=culprit):
        check_metadata_is_safe(tmp_path)


def test_a_tensor_with_a_hole_is_refused(tmp_path: Path) -> None:
    save_quarters(tmp_path, QUARTERS[:3])
    with pytest.raises(ConversionError, match="chunks of matrix do not fill it"):
        read_checkpoint_index(tmp_path).read_tensor("matrix")


def test_overlapping_chunks_do_not_hide_a_hole(tmp_path: Path) -> None:
    save_quarters(tmp_path, [*QUARTERS[:3], (2, 0)])
    with pytest.raises(ConversionError, match="chunks of matrix do not fill it"):
        read_checkpoint_index(tmp_path).read_tensor("matrix")


def test_a_damaged_chunk_is_refused(tmp_path: Path) -> None:
    path = save_quarters(tmp_path) / "__0_0.distcp"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(ConversionError, match=r"matrix at 0: .* is damaged"):
        read_checkpoint_index(tmp_path).read_tensor("matrix")


def test_a_chunk_that_is_not_what_the_metadata_says_is_refused(tmp_path: Path) -> None:
    save_quarters(tmp_path)
    edit_metadata(tmp_path, lambda metadata: vars(metadata.state_dict_metadata["matrix"].properties).update(dtype=torch.int32))
    with pytest.raises(ConversionError, match=r"is not what \.metadata says"):
        read_checkpoint_index(tmp_path).read_tensor("matrix")
