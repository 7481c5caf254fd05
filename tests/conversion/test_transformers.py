"""transformers, the other side's own reader, agrees with what is exported."""

from pathlib import Path

import pytest
import torch

from megatron_poro.conversion import Like, to_hf, to_megatron
from tests.conversion.llamas import LLAMA, save_llama
from tests.shared_data import shared

TOKENS = torch.tensor([[1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315]])


@pytest.mark.parametrize("kind", ["trained and tied", "scaled and untied"])
def test_transformers_loads_an_export_whole_and_computes_the_same(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    source = shared("checkpoints/stories260K_hf") if "tied" in kind.split() else save_llama(tmp_path / "source", LLAMA)
    to_megatron(source, tmp_path / "megatron")
    to_hf(tmp_path / "megatron", tmp_path / "hf", like=Like(source))
    load = transformers.LlamaForCausalLM.from_pretrained
    expected = load(source, dtype="auto")
    exported, info = load(tmp_path / "hf", dtype="auto", output_loading_info=True)
    assert not any(info.values())
    assert exported.config.rope_parameters == expected.config.rope_parameters
    assert exported.config.eos_token_id == expected.config.eos_token_id
    assert exported.dtype == expected.dtype
    generated = exported.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, expected.generate(TOKENS, max_new_tokens=4, do_sample=False))
    with torch.no_grad():
        assert torch.equal(exported(TOKENS).logits, expected(TOKENS).logits)
