"""A slow rank is named for what it is slow at, and nobody else is."""

from megatron_poro.topology import Layout
from megatron_poro.training.stragglers import Straggler, Work, find_stragglers, summarise

USUAL = Work(data=0.001, forward=0.1, products=0.005, step=0.4)


def named(work: list[Work], layout: Layout, percent: float = 20.0) -> list[tuple[int, str]]:
    return [(one.rank, one.measure) for one in find_stragglers(work, layout, percent)]


def test_equal_ranks_are_not_named() -> None:
    assert named([USUAL] * 8, Layout(2, 2, 2)) == []


def test_a_slow_device_is_named() -> None:
    work = [USUAL] * 8
    work[5] = USUAL._replace(products=0.0065)
    assert named(work, Layout(2, 2, 2)) == [(5, "products")]
    assert named(work, Layout(2, 2, 2), percent=50.0) == []


def test_of_two_ranks_the_slower_is_named() -> None:
    assert named([USUAL, USUAL._replace(products=0.007)], Layout(2)) == [(1, "products")]


def test_forward_passes_are_compared_within_a_stage() -> None:
    work = [USUAL, USUAL, USUAL._replace(forward=0.3), USUAL._replace(forward=0.3)]
    assert named(work, Layout(pipeline=2, data=2)) == []
    work[3] = USUAL._replace(forward=0.4)
    assert named(work, Layout(pipeline=2, data=2)) == [(3, "forward")]


def test_data_counts_when_it_costs_the_step() -> None:
    assert named([USUAL, USUAL._replace(data=0.01), USUAL], Layout(data=3)) == []
    assert named([USUAL, USUAL._replace(data=0.1), USUAL], Layout(data=3)) == [(1, "data")]


def test_0_percent_names_none() -> None:
    assert named([USUAL, USUAL._replace(products=1.0)], Layout(2), percent=0.0) == []


def test_the_warning_says_who_and_how_much() -> None:
    said = Straggler(1, "products", 0.012, 0.008).describe("rank 1 on nid7 (cuda:1)")
    assert said == (
        "slow: rank 1 on nid7 (cuda:1) needs 1.50 times the median for a fixed amount of matrix products (12.0 ms, median 8.0 ms)"
    )


def test_the_summary_names_the_slowest() -> None:
    work = [USUAL, USUAL._replace(data=0.5), USUAL]
    assert summarise(work)["data"] == {"median_seconds": 0.001, "most_seconds": 0.5, "rank": 1}
