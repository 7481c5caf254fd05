"""What tests of files from strangers share."""

import resource
from dataclasses import replace

from megatron_poro.conversion.table import pieces
from megatron_poro.conversion.weights import Weights, digest
from tests.conversion.llamas import LLAMA

FOR_MEGATRON_LM = replace(LLAMA, rope_original_length=8192)
"""Megatron-LM knows no other original length."""
ALLOWED_MB = 300
"""What all the mutated inputs of a test together may add to the process; one believed size would add gigabytes."""


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read_all(weights: Weights) -> None:
    """Read every tensor."""
    for piece in pieces(weights.model):
        for part in range(len(piece.names)):
            digest(weights, piece, part, lambda *_: None)
