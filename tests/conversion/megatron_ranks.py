"""What the ranks of a Megatron-LM job write with `--ckpt-format torch`, and whether they would load what we write so.

    python -m tests.conversion.megatron_ranks write|check CONVERTED FOLDER TENSORxPIPELINExVIRTUAL [LAYOUT ...]

`write` fills each rank's own GPTModel from the torch_dist checkpoint CONVERTED and writes FOLDER/LAYOUT as Megatron-LM would.
`check` loads each file of FOLDER/LAYOUT strictly into its rank's model and compares every number's bits with CONVERTED.
One process plays all ranks in turn on torch's `fake` backend, whose collectives return garbage: none is relied on.
"""

import argparse
import contextlib
import functools
import itertools
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from megatron_poro.config import ModelConfig, head_dim
from megatron_poro.conversion import read_checkpoint_index, read_model_file
from megatron_poro.topology import Coordinates, Layout, padded_vocab_size, rank_at

ITERATION = 7
TRACKER = "latest_checkpointed_iteration.txt"
COMPARED_BY_MEGATRON = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
)
"""Arguments that Megatron-LM asserts to be the job's own before it loads a file."""


class Source:
    """The checkpoint CONVERTED; each tensor is read from disk once, for all ranks of all layouts."""

    def __init__(self, directory: Path) -> None:
        self.model = read_model_file(directory)[0]
        self._read = functools.cache(read_checkpoint_index(directory).read_tensor)

    def read(self, shard: Any) -> torch.Tensor:
        """The part of a ShardedTensor that the checkpoint holds, fp32: rows that only pad the vocabulary are left out."""
        whole = self._read(shard.key, ())
        if tuple(whole.shape) != tuple(shard.global_shape) and not shard.allow_shape_mismatch:
            sys.exit(f"{shard.key} is {list(whole.shape)}, but megatron-core expects {list(shard.global_shape)}")
        return whole[shard.global_slice()].to(torch.float32)


def main() -> None:
    """Play every rank of each layout, and say how long each layout took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("write", "check"))
    parser.add_argument("converted", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("layouts", nargs="+", metavar="LAYOUT")
    parser.add_argument("--vocab-multiple", type=int, default=1, help="write: pad to a multiple of this x tensor; Megatron-LM: 128")
    args = parser.parse_args()
    from megatron_poro.engine.platform import install_cpu_platform

    install_cpu_platform()
    torch.set_num_threads(1)
    import megatron.core.models.gpt  # noqa: F401 - here, so that its seconds are not the first layout's

    source = Source(args.converted)
    run = functools.partial(write_layout, vocab_multiple=args.vocab_multiple) if args.command == "write" else check_layout
    for text in args.layouts:
        start = time.perf_counter()
        run(source, parse_layout(text, source.model), args.folder / text)
        print(f"{args.command} {text}: {time.perf_counter() - start:.2f} s", flush=True)


def parse_layout(text: str, model: ModelConfig) -> Layout:
    """`4x2x1` as a Layout that the model's shape allows."""
    tensor, pipeline, virtual_stages = map(int, text.split("x"))
    if virtual_stages > 1 and pipeline == 1:
        sys.exit(f"{text}: megatron-core interleaves only with more than one pipeline rank")
    if model.num_layers % (pipeline * virtual_stages) or model.num_attention_heads % tensor or model.ffn_hidden_size % tensor:
        sys.exit(f"{text} does not divide the layers, heads and feed-forward width of the model")
    return Layout(tensor, pipeline, virtual_stages=virtual_stages)


def write_layout(source: Source, layout: Layout, folder: Path, *, vocab_multiple: int = 1) -> None:
    """Write FOLDER/LAYOUT: one file a rank, and the tracker that names the iteration."""
    rows = padded_vocab_size(source.model.vocab_size, vocab_multiple * layout.tensor)
    iteration = folder / f"iter_{ITERATION:07d}"
    for where in all_ranks(layout):
        with playing_rank(where, layout):
            chunks = build_chunks(source.model, layout, rows)
            for chunk in chunks:
                fill(chunk, source)
            file = rank_file(iteration, where, layout)
            file.parent.mkdir(parents=True)
            torch.save(rank_state(chunks, describe_job(source.model, layout, rows)), file)
    (folder / TRACKER).write_text(str(ITERATION))


def check_layout(source: Source, layout: Layout, folder: Path) -> None:
    """Load FOLDER/LAYOUT rank by rank; exits naming the first thing that is not as Megatron-LM needs it."""
    tracker = (folder / TRACKER).read_text().strip()
    iteration = folder / (tracker if tracker == "release" else f"iter_{int(tracker):07d}")
    expected = {str(rank_file(iteration, where, layout)) for where in all_ranks(layout)}
    if unknown := {str(file) for file in iteration.glob("*/*")} - expected:
        sys.exit(f"{min(unknown)} is no file of a rank of {folder.name}")
    for where in all_ranks(layout):
        file = rank_file(iteration, where, layout)
        state = torch.load(file, weights_only=False)
        place = f"{folder.name} {file.parent.name}"
        check_arguments(state, source.model, layout, fail=functools.partial(stop, place))
        with playing_rank(where, layout):
            chunks = build_chunks(source.model, layout, state["args"].padded_vocab_size)
            for key, chunk in zip(model_keys(layout), chunks, strict=True):
                check_chunk(chunk, state.get(key, {}), source, fail=functools.partial(stop, f"{place} {key}"))


def stop(place: str, message: str) -> NoReturn:
    """Exit with what is wrong, and where."""
    sys.exit(f"{place}: {message}")


def all_ranks(layout: Layout) -> Iterator[Coordinates]:
    """The ranks of one copy of the model."""
    for pipeline, tensor in itertools.product(range(layout.pipeline), range(layout.tensor)):
        yield Coordinates(data=0, pipeline=pipeline, tensor=tensor)


def rank_file(iteration: Path, where: Coordinates, layout: Layout) -> Path:
    """Where Megatron-LM looks for a rank's file: the pipeline rank is named only when there are several."""
    stage = f"_{where.pipeline:03d}" if layout.pipeline > 1 else ""
    return iteration / f"mp_rank_{where.tensor:02d}{stage}" / "model_optim_rng.pt"


def model_keys(layout: Layout) -> list[str]:
    """Keys of a file that hold weights: one a virtual stage, numbered only when there are several."""
    return [f"model{stage}" for stage in range(layout.virtual_stages)] if layout.virtual_stages > 1 else ["model"]


@contextlib.contextmanager
def playing_rank(where: Coordinates, layout: Layout) -> Iterator[None]:
    """Be this rank of a job without data parallelism."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    virtual_stages = layout.virtual_stages if layout.virtual_stages > 1 else None
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank_at(where, layout), world_size=layout.world_size)
    # Gloo groups would look for the other processes.
    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline, virtual_stages, create_gloo_process_groups=False)
    try:
        model_parallel_cuda_manual_seed(7)
        yield
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def build_chunks(model: ModelConfig, layout: Layout, rows: int) -> list[Any]:
    """megatron-core's GPTModel with its own local layers, one a virtual stage; the weights are whatever memory held."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    config = transformer_config(model, layout)
    stages = range(layout.virtual_stages) if layout.virtual_stages > 1 else [None]
    return [
        GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=rows,
            max_sequence_length=64,
            pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
            post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
            share_embeddings_and_output_weights=model.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=int(model.rope_theta),
            vp_stage=stage,
        )
        for stage in stages
    ]


def transformer_config(model: ModelConfig, layout: Layout) -> Any:
    """megatron-core's description of the model and its layout."""
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=head_dim(model),
        layernorm_epsilon=model.norm_epsilon,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_stages if layout.virtual_stages > 1 else None,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        perform_initialization=False,  # every weight is loaded, and random numbers would take most of the time
        pipeline_dtype=torch.float32,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )


def weights_of(chunk: Any, source: Source) -> dict[str, torch.Tensor]:
    """What the checkpoint holds for a chunk, by the chunk's own names; padding rows of the vocabulary are left out."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    weights = {}
    for name, shard in chunk.sharded_state_dict().items():
        if isinstance(shard, ShardedTensorFactory):
            weights[name] = shard.merge_fn([source.read(part) for part in shard.build()])
        elif isinstance(shard, ShardedTensor):
            weights[name] = source.read(shard)
    return weights


def fill(chunk: Any, source: Source) -> None:
    """Load a chunk from the checkpoint; padding rows become random, as training from random weights leaves them."""
    shapes = {name: parameter.shape for name, parameter in chunk.named_parameters()}
    state = {}
    for name, weight in weights_of(chunk, source).items():
        same = torch.Generator().manual_seed(7)  # a tied embedding's copies on the first and the last stage are equal
        padding = torch.randn(shapes[name][0] - len(weight), *shapes[name][1:], generator=same)
        state[name] = torch.cat([weight, padding])
    chunk.load_state_dict(state, strict=True)


def check_arguments(state: dict[str, Any], model: ModelConfig, layout: Layout, *, fail: Callable[[str], NoReturn]) -> None:
    """Fail unless a file's arguments are those of this job."""
    if state["checkpoint_version"] != 3.0:
        fail(f"checkpoint_version is {state['checkpoint_version']}, and Megatron-LM reorders the query/key/value rows of others")
    expected = describe_job(model, layout, state["args"].padded_vocab_size)
    for name in COMPARED_BY_MEGATRON:
        if getattr(state["args"], name) != getattr(expected, name):
            fail(f"args.{name} is {getattr(state['args'], name)}, but the job has {getattr(expected, name)}")


def check_chunk(chunk: Any, state: dict[str, Any], source: Source, *, fail: Callable[[str], NoReturn]) -> None:
    """Fail unless `state` loads strictly and holds the checkpoint's numbers bit for bit."""
    # Megatron-LM accepts a file with or without them: they are FP8 history of Transformer Engine, and None in local layers.
    state = {name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")}
    try:
        chunk.load_state_dict(state, strict=True)
    except RuntimeError as error:
        fail(str(error))
    loaded = dict(chunk.named_parameters())
    for name, weight in weights_of(chunk, source).items():
        found = loaded[name].detach()[: len(weight)]
        differs = found.contiguous().view(torch.int32) != weight.contiguous().view(torch.int32)
        if differs.any():
            index = tuple(differs.nonzero()[0].tolist())
            fail(f"{name}{list(index)} is {found[index].item()!r}, but the checkpoint has {weight[index].item()!r}")


def rank_state(chunks: list[Any], args: argparse.Namespace) -> dict[str, Any]:
    """A rank's file, with keys in Megatron-LM's order."""
    keys = model_keys(Layout(virtual_stages=len(chunks)))
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    return {
        "args": args,
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        **{key: chunk.state_dict_for_save_checkpoint() for key, chunk in zip(keys, chunks, strict=True)},
        "optimizer": optimizer_state(parameters),
        "opt_param_scheduler": {
            "max_lr": 3e-4,
            "lr_warmup_steps": 10,
            "num_steps": ITERATION * 8,
            "lr_decay_style": "cosine",
            "lr_decay_steps": 1000,
            "min_lr": 3e-8,
            "start_wd": 0.05,
            "end_wd": 0.05,
            "wd_incr_style": "constant",
            "wd_incr_steps": 1000,
        },
        "rng_state": [random_state()],
        "num_floating_point_operations_so_far": 0,
    }


def optimizer_state(parameters: list[torch.Tensor]) -> dict[str, Any]:
    """AdamW's state: twice the bytes of the weights, which a converter should leave on disk."""
    moments = {
        number: {"step": torch.tensor(float(ITERATION)), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for number, p in enumerate(parameters)
    }
    group = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05, "params": list(moments)}
    return {"state": moments, "param_groups": [group]}


def random_state() -> dict[str, Any]:
    """Random states as Megatron-LM saves them: nested tuples, a numpy array, tensors."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return {
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.cuda.get_rng_state(),
        "rng_tracker_states": get_cuda_rng_tracker().get_states(),
    }


def describe_job(model: ModelConfig, layout: Layout, rows: int) -> argparse.Namespace:
    """Megatron-LM's arguments of the job, under its names, with a few of every kind of value that it puts there."""
    from megatron.core.enums import ModelType
    from megatron.core.transformer.enums import AttnBackend

    interleaved = layout.virtual_stages > 1
    grouped = model.num_key_value_heads != model.num_attention_heads
    scaled = model.rope_scaling_factor != 1.0
    return argparse.Namespace(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        group_query_attention=grouped,
        num_query_groups=model.num_key_value_heads if grouped else 1,  # its default, and not what the model has
        kv_channels=head_dim(model),
        padded_vocab_size=rows,
        max_position_embeddings=model.max_position_embeddings,
        seq_length=model.max_position_embeddings,
        norm_epsilon=model.norm_epsilon,
        normalization="RMSNorm",
        swiglu=True,
        add_bias_linear=False,
        add_qkv_bias=False,
        position_embedding_type="rope",
        rotary_base=int(model.rope_theta),
        rotary_percent=1.0,
        rotary_interleaved=False,
        use_rope_scaling=scaled,
        rope_scaling_factor=model.rope_scaling_factor if scaled else 8.0,  # its default, unused
        untie_embeddings_and_output_weights=not model.tied_embeddings,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_stages if interleaved else None,
        num_layers_per_virtual_pipeline_stage=model.num_layers // layout.pipeline // layout.virtual_stages if interleaved else None,
        params_dtype=torch.float32,
        bf16=False,
        fp16=False,
        iteration=ITERATION,
        consumed_train_samples=ITERATION * 8,
        transformer_impl="local",
        model_type=ModelType.encoder_or_decoder,
        attention_backend=AttnBackend.auto,
        exit_signal=signal.SIGTERM,
        save=Path("/checkpoints/llama"),
        load=None,
        betas=(0.9, 0.95),
        data_path=["1.0", "corpus"],
    )


if __name__ == "__main__":
    main()
