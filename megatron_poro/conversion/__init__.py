"""Hugging Face Llama <-> Megatron distributed checkpoint: pure tensor layout, streamed, proved by reading back.

Neither megatron-core nor a GPU is needed: `to_megatron`, `to_hf` and `verify` take directories.
"""

from megatron_poro.config.sameness import differing_keys
from megatron_poro.conversion.checksums import check_files, find_change, hash_files, is_as_written, read_checksums, write_checksums
from megatron_poro.conversion.convert import Like, MegatronLM, to_hf, to_megatron
from megatron_poro.conversion.hf_config import to_huggingface
from megatron_poro.conversion.megatron import open_megatron, read_model_file, write_model_file
from megatron_poro.conversion.proof import Effort
from megatron_poro.conversion.torch_dist import check_metadata_is_safe, read_checkpoint_index
from megatron_poro.conversion.verify import verify

__all__ = [
    "Effort",
    "Like",
    "MegatronLM",
    "check_files",
    "check_metadata_is_safe",
    "differing_keys",
    "find_change",
    "hash_files",
    "is_as_written",
    "open_megatron",
    "read_checkpoint_index",
    "read_checksums",
    "read_model_file",
    "to_hf",
    "to_huggingface",
    "to_megatron",
    "verify",
    "write_checksums",
    "write_model_file",
]
