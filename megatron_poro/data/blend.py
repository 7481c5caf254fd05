"""Which source each sample comes from: a closed form in the sample's number, without a table or a running state.

The sources are the leaves of a Huffman tree over their weights. A node whose children weigh a and b sends
floor(m a / (a + b) + 1/2) of its first m samples to the left child and the rest to the right one. So sample n walks
from the root to a leaf: at each node its number becomes its number within the child. A walk has about as many steps
as the mix has bits of entropy: 2 for four equal sources, 8 for two hundred.

**Bound.** With w_j the share of source j among k sources, for every n

    |count_j(n) - n w_j| < 2,  whatever k and the weights are (at most 1/2 for k = 2).

Proof. Let e(v) be the largest distance, over n, of node v's count from its share of n; e(root) = 0. A node's count is
p times its parent's count, p being its share of the parent's weight, within 1/2 by rounding, so
e(v) <= 1/2 + p e(parent). Let v be an inner node with children a <= b and sibling s. When Huffman's algorithm joined
a and b, they were the two lightest, so every other weight, and every sum of them, was at least b: s >= b >= (a + b)/2
and p = (a + b)/(a + b + s) <= 2/3. Along inner nodes therefore e(v) <= 1/2 + 2/3 e(parent), which stays below 3/2. A
leaf has p < 1, so e(leaf) < 1/2 + 3/2 = 2. With k = 2 the parent of both leaves is the root.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_poro.data.permutation import Integers


class _Node(NamedTuple):
    """A node of the tree. A leaf is its own right child and sends nothing to the left, so a walk rests there."""

    weight: int
    left_weight: int
    left: int
    right: int
    depth: int


@dataclass(frozen=True)
class Blend:
    """The mix of some sources; node j of the tree is source j, children come before parents."""

    num_sources: int
    root: int
    nodes: tuple[_Node, ...]

    def picks(self, first: int, count: int) -> tuple[Integers, Integers]:
        """The source of each of `count` samples from `first` on, and its number within that source. Two [count]."""
        weights, left_weights, *children, _ = zip(*self.nodes, strict=True)
        exact = self._exact_type(first + count)
        weight: NDArray[Any] = np.array(weights, exact)
        left_weight: NDArray[Any] = np.array(left_weights, exact)
        left, right = np.array(children)
        node = np.full(count, self.root)
        number: NDArray[Any] = np.arange(first, first + count).astype(exact)
        for _ in range(self.nodes[self.root].depth):
            share, total = left_weight[node], weight[node]
            before = (2 * number * share + total) // (2 * total)
            goes_left = (2 * (number + 1) * share + total) // (2 * total) > before
            number = np.where(goes_left, before, number - before)
            node = np.where(goes_left, left[node], right[node])
        return node, number.astype(np.int64)

    def counts_at(self, num_samples: int) -> list[int]:
        """How many of the first `num_samples` samples come from each source, exact."""
        counts = [0] * len(self.nodes)
        counts[self.root] = num_samples
        for n in range(len(self.nodes) - 1, self.num_sources - 1, -1):
            node = self.nodes[n]
            counts[node.left] = (2 * counts[n] * node.left_weight + node.weight) // (2 * node.weight)
            counts[node.right] = counts[n] - counts[node.left]
        return counts[: self.num_sources]

    def _exact_type(self, num_samples: int) -> type:
        """64-bit integers where every product fits; Python's, ten times slower, for weights of very many digits."""
        fits = (2 * num_samples + 3) * self.nodes[self.root].weight < 2**63
        return np.int64 if fits else object


def build_blend(weights: Sequence[float]) -> Blend:
    """The blend of sources with these relative weights, read as the decimals they are written as; 0 means never.

    Raises ValueError when a weight is negative or all are 0.
    """
    exact = _to_integers(weights)
    if min(exact) < 0 or not any(exact):
        raise ValueError(f"weights must be at least 0 and not all 0: {list(weights)}")
    nodes = [_Node(weight, 0, n, n, 0) for n, weight in enumerate(exact)]
    heap = [(weight, n) for n, weight in enumerate(exact) if weight]
    heapq.heapify(heap)
    while len(heap) > 1:
        (light, right), (heavy, left) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (light + heavy, len(nodes)))
        nodes.append(_Node(light + heavy, heavy, left, right, 1 + max(nodes[left].depth, nodes[right].depth)))
    return Blend(len(exact), heap[0][1], tuple(nodes))


def _to_integers(weights: Sequence[float]) -> list[int]:
    """The smallest integers in the ratio of `weights`: 0.3 counts as 3/10, not as the nearest binary fraction."""
    fractions = [Fraction(str(weight)) for weight in weights]
    denominator = lcm(*(fraction.denominator for fraction in fractions))
    integers = [int(fraction * denominator) for fraction in fractions]
    divisor = gcd(*integers) or 1
    return [integer // divisor for integer in integers]
