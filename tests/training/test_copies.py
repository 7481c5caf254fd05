"""Which copies of the weights differ, from their hashes."""

import pytest

from megatron_poro.topology import Layout
from megatron_poro.training.copies import describe_differing, find_differing


def hashes(layout: Layout, **changed: tuple[int, int]) -> list[tuple[int, int]]:
    """Every tensor rank and stage has weights of its own, each stage some that its tensor group holds in common."""
    all_of_it = [(rank % layout.tensor + 10 * (rank // (layout.tensor * layout.data)), 7) for rank in range(layout.world_size)]
    return [changed.get(f"rank{rank}", value) for rank, value in enumerate(all_of_it)]


@pytest.mark.parametrize("layout", [Layout(), Layout(2), Layout(2, 2, 2), Layout(1, 2, 4), Layout(4, 1, 3)])
def test_equal_copies_are_not_named(layout: Layout) -> None:
    assert find_differing(hashes(layout), layout) == []


def test_the_minority_is_named() -> None:
    layout = Layout(2, 1, 3)
    assert find_differing(hashes(layout, rank3=(99, 7)), layout) == [([3], [1, 5])]


def test_without_a_majority_all_are_named() -> None:
    layout = Layout(data=2)
    assert find_differing(hashes(layout, rank1=(99, 7)), layout) == [([0, 1], [])]


def test_what_a_tensor_group_holds_in_common_is_compared_too() -> None:
    layout = Layout(tensor=3)
    assert find_differing(hashes(layout, rank2=(2, 8)), layout) == [([2], [0, 1])]


def test_the_error_names_hosts_and_the_way_out() -> None:
    names = [f"rank {rank} on nid{rank}" for rank in range(6)]
    said = describe_differing([([3], [1, 5])], names, 500)
    assert "step 500" in said
    assert "rank 3 on nid3: differs; the copies on ranks 1, 5 agree" in said
    assert "newest checkpoint" in said
    assert "no majority" in describe_differing([([0, 1], [])], names, 500)
