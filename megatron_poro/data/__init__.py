"""What training reads: the samples, their order, and the ledger of what was read. Loads no torch."""

from megatron_poro.config.data_rules import check_data
from megatron_poro.data.batches import HeldOutSet, TrainingData
from megatron_poro.data.blend import Blend, build_blend
from megatron_poro.data.ledger import Ledger, SourceEntry, ledger_at
from megatron_poro.data.order import ORDER_VERSION, Located, SampleOrder, build_order
from megatron_poro.data.permutation import Permutation, build_permutation
from megatron_poro.data.sources import fingerprint_of

__all__ = [
    "ORDER_VERSION",
    "Blend",
    "HeldOutSet",
    "Ledger",
    "Located",
    "Permutation",
    "SampleOrder",
    "SourceEntry",
    "TrainingData",
    "build_blend",
    "build_order",
    "build_permutation",
    "check_data",
    "fingerprint_of",
    "ledger_at",
]
