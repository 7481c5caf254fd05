"""What the demo starts from: a tokenizer trained on its text and a random Llama in Hugging Face form."""

from pathlib import Path

from data_indexing import llama3
from data_indexing.tokenizer import TextTokenizer
from megatron_poro.config import ModelConfig
from megatron_poro.demo.corpus import DOMAINS, read_texts

TOKENIZER_BYTES_PER_DOMAIN = 400_000


def train_tokenizer(corpus: Path, vocab_size: int) -> TextTokenizer:
    """A byte-level BPE on equal shares of the domains, with Llama 3's split pattern and, after the merges, its special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = llama3.special_tokens()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(llama3.SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = (text for domain in DOMAINS for text in read_texts(corpus / f"{domain}.jsonl", TOKENIZER_BYTES_PER_DOMAIN))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    config = {"bos_token": llama3.BOS_TOKEN, "eos_token": llama3.EOS_TOKEN}
    return TextTokenizer(tokenizer.to_str(), name="demo", config=config)


def write_random_llama(folder: Path, model: ModelConfig, tokenizer: TextTokenizer, seed: int) -> None:
    """Write a Hugging Face directory with random weights and the tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from megatron_poro.conversion import to_huggingface

    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    disable_progress_bar()
    torch.manual_seed(seed)
    llama = LlamaForCausalLM(LlamaConfig(**to_huggingface(model, ids, torch.float32)))
    llama.save_pretrained(folder)
    tokenizer.save_hf(folder)
