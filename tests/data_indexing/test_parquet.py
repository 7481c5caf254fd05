import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_indexing.parquet import read_rows, row_groups

TEXTS = [f"{number} " + "sana " * 60_000 for number in range(40)]


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1] * 40, [*"abc" * 100, *TEXTS]], ids=["all large", "all the same", "some large"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_large_rows_come_one_by_one_though_they_are_in_one_group(tmp_path, texts, use_dictionary):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=use_dictionary)
    (group,) = row_groups(path)
    chunks = list(read_rows(path, "text", group.number))
    assert max(len(data) for data, _ in chunks) < 2_000_000
    assert b"".join(data for data, _ in chunks).decode() == "".join(texts)
    assert [length for _, lengths in chunks for length in lengths] == list(map(len, texts))
    assert group.num_rows == len(texts)


def test_small_rows_come_together(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["sana", None, ""] * 5000}), path)
    ((data, lengths),) = read_rows(path, "text", 0)
    assert data == b"sana" * 5000
    assert list(lengths) == [4, -1, 0] * 5000
