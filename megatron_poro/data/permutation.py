"""A keyed shuffle of 0..size-1 that answers for any index at once, in constant memory, the same on every machine.

An index is written as (left, right) in a grid of `rows` x `columns` >= `size` cells, as square as possible, and goes
through the rounds of a Feistel network whose halves are added modulo rows and columns (Black and Rogaway, Ciphers
with Arbitrary Finite Domains, 2002). Each round only shifts one half by a function of the other, so the network is a
bijection of the grid; a result beyond `size` is sent through again until it falls inside, which keeps it a bijection
of 0..size-1. The grid has fewer than `rows` cells too many, so that happens about once in sqrt(size) indices.
"""

import hashlib
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
_Words = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Permutation:
    """A bijection of range(size); `round_keys` are eight 64-bit words."""

    size: int
    round_keys: _Words

    def at(self, index: int) -> int:
        """Where `index` goes. Raises IndexError outside range(size)."""
        return int(self.take(np.array([index], np.int64))[0])

    def take(self, indices: Integers) -> Integers:
        """Where each of `indices` goes. Raises IndexError outside range(size)."""
        if indices.size and not 0 <= indices.min() <= indices.max() < self.size:
            raise IndexError(f"index outside 0..{self.size - 1}")
        result = self._encrypt(indices.astype(np.uint64))
        while (outside := result >= np.uint64(self.size)).any():
            result[outside] = self._encrypt(result[outside])
        return result.astype(np.int64)

    def _encrypt(self, cells: _Words) -> _Words:
        side = isqrt(self.size - 1) + 1
        rows, columns = np.uint64(side), np.uint64(-(-self.size // side))
        left = cells // columns
        right = cells - left * columns
        for left_key, right_key in self.round_keys.reshape(-1, 2):
            left = _shift(left, _hash(right ^ left_key), rows)
            right = _shift(right, _hash(left ^ right_key), columns)
        return left * columns + right


def build_permutation(size: int, *, seed: int, fingerprint: str, epoch: int) -> Permutation:
    """The shuffle of `size` sequences that belongs to a seed, a source's content and an epoch."""
    if size < 1:
        raise ValueError(f"nothing to permute: size {size}")
    digest = hashlib.sha512(f"{seed}/{epoch}/{fingerprint}".encode()).digest()
    return Permutation(size, np.frombuffer(digest, dtype="<u8").astype(np.uint64))


def _shift(half: _Words, by: _Words, modulus: np.uint64) -> _Words:
    """(half + by) modulo `modulus`, for half < modulus, without numpy's %, which is slower than its //.

    `by` is reduced before it is added: a sum that wraps at 2^64 would be no shift.
    """
    shifted = half + (by - by // modulus * modulus)
    shifted -= modulus * (shifted >= modulus)
    return shifted


def _hash(words: _Words) -> _Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
