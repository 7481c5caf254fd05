"""What training reads: the samples, their order, and the ledger of what was read. Loads no torch."""

from megatron_poro.config.data_rules import check_data
from megatron_poro.data.batches import HeldOutSet, Rows, TrainingData
from megatron_poro.data.blend import Blend, build_blend
from megatron_poro.data.borders import document_positions, document_starts, look_up_eod
from megatron_poro.data.documents import Origin, count_documents, documents_of
from megatron_poro.data.ledger import Ledger, SourceEntry, ledger_at
from megatron_poro.data.order import ORDER_VERSION, Located, SampleOrder, build_order
from megatron_poro.data.permutation import Permutation, build_permutation
from megatron_poro.data.plan import Plan, SourcePlan, build_plan
from megatron_poro.data.samples import render_samples
from megatron_poro.data.sources import fingerprint_of
from megatron_poro.data.windows import LEFT_OUT, Windows, read_windows, to_windows

__all__ = [
    "LEFT_OUT",
    "ORDER_VERSION",
    "Blend",
    "HeldOutSet",
    "Ledger",
    "Located",
    "Origin",
    "Permutation",
    "Plan",
    "Rows",
    "SampleOrder",
    "SourceEntry",
    "SourcePlan",
    "TrainingData",
    "Windows",
    "build_blend",
    "build_order",
    "build_permutation",
    "build_plan",
    "check_data",
    "count_documents",
    "document_positions",
    "document_starts",
    "documents_of",
    "fingerprint_of",
    "ledger_at",
    "look_up_eod",
    "read_windows",
    "render_samples",
    "to_windows",
]
