"""Megatron-Bridge's own conversion on the CPU, from Hugging Face to a `torch_dist` checkpoint and back: the peer of ours.

BRIDGE_PYTHON benchmarks/megatron_bridge.py --bridge CHECKOUT --megatron-lm CHECKOUT import HF_DIR OUT
BRIDGE_PYTHON benchmarks/megatron_bridge.py --bridge CHECKOUT --megatron-lm CHECKOUT export MEGATRON_DIR OUT --reference HF_DIR

It makes the calls of `AutoBridge` that the documented `scripts/conversion/convert.sh --device cpu` ends in: one process, bf16,
a strict export with progress bars. It was run with Megatron-Bridge 067f987df and Megatron-LM d98e8a64dd. That script does not
run without a GPU's libraries; the checkouts stay as they are, and this file supplies what they lack, in memory:

- typing.override, which Python 3.11 has not: megatron.training imports it (the checkout asks for 3.12).
- triton, to three modules of kernels in megatron.core that import it unconditionally; the conversion calls no kernel.
- transformer_engine, to Megatron-Bridge's LoRA layers; no adapter is converted. Nobody else may find it: megatron.core and
  Megatron-Bridge look for it to choose their layers and fusions.
- Megatron's local layers, and no fused rotary embedding and persistent layer norm: the Llama provider asks for those of
  Transformer Engine and Apex. The names in the checkpoint are the same.
- torch.cuda.synchronize and torch.cuda.current_device, which megatron.core's save calls without asking for CUDA.

The peer has an environment of its own (BRIDGE_PYTHON, Python 3.11), without megatron-core, megatron-bridge and the libraries above:

    pip install torch==2.13.0 transformers==5.12.1 datasets==5.2.0 diffusers==0.42.1 einops==0.8.2 \\
        nvidia-modelopt==0.47.0 psutil==7.2.2 tensorboard==2.21.0

torch is the build for the CPU. HF_DIR needs a tokenizer. Python compiles hundreds of modules of the checkouts to byte code at the
first start; with PYTHONDONTWRITEBYTECODE set it does so at every start, and each conversion takes seconds longer.
"""

import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its tokenize.py must not stand in for the standard library's

import argparse
import importlib.abc
import importlib.machinery
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

_TRITON = ("triton", "triton.language")
_STAND_INS = {
    "megatron.core.transformer.moe.ops.paged_stash": _TRITON,
    "megatron.core.ssm.ops.common.causal_conv1d_varlen": _TRITON,
    "megatron.core.ssm.ops.mamba2.batch_invariant_decode": _TRITON,
    "megatron.bridge.peft.lora_layers": ("transformer_engine", "transformer_engine.pytorch"),
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _STAND_INS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Runs a module that alone sees the stand-ins: others take what they can import for what they can use."""

    def exec_module(self, module: types.ModuleType) -> None:
        names = _STAND_INS[module.__name__]
        # megatron.core parses triton's version; "0" is too old for anything that depends on it.
        sys.modules.update({name: mock.MagicMock(name=name, __version__="0") for name in names})
        try:
            super().exec_module(module)
        finally:
            for name in names:
                del sys.modules[name]


def main() -> None:
    """Convert one checkpoint."""
    args = _arguments()
    if args.out.exists() and any(args.out.iterdir()):
        sys.exit(f"{args.out} is not empty")
    sys.path[:0] = [str(args.megatron_lm.resolve()), str(args.bridge.resolve() / "src")]
    _stand_in()
    _use_local_layers()
    if args.command == "import":
        _import(args.source, args.out)
    else:
        _export(args.source, args.out, args.reference)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bridge", type=Path, required=True, help="checkout of Megatron-Bridge")
    parser.add_argument("--megatron-lm", type=Path, required=True, help="checkout of Megatron-LM")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("import", "export"):
        subparser = commands.add_parser(command)
        subparser.add_argument("source", type=Path, help="the checkpoint to convert")
        subparser.add_argument("out", type=Path, help="a new or empty folder")
    subparser.add_argument("--reference", type=Path, required=True, help="Hugging Face model of the same architecture")
    return parser.parse_args()


def _stand_in() -> None:
    import torch
    import typing_extensions

    typing.override = typing_extensions.override
    sys.meta_path.insert(0, _Finder())
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.current_device = lambda: "cpu"  # only ever handed on as a tensor's device


def _use_local_layers() -> None:
    from megatron.bridge.models.gpt_provider import GPTModelProvider, local_layer_spec

    finalize = GPTModelProvider.finalize

    def finalize_local(self: GPTModelProvider) -> None:
        self.transformer_layer_spec = local_layer_spec
        self.apply_rope_fusion = False
        self.persist_layer_norm = False
        finalize(self)

    GPTModelProvider.finalize = finalize_local


def _import(source: Path, out: Path) -> None:
    import torch
    from megatron.bridge import AutoBridge

    AutoBridge.import_ckpt(str(source), str(out), torch_dtype=torch.bfloat16, device_map="cpu", trust_remote_code=False)


def _export(source: Path, out: Path, reference: Path) -> None:
    from megatron.bridge import AutoBridge

    bridge = AutoBridge.from_hf_pretrained(str(reference), trust_remote_code=False)
    # The configuration is the checkpoint's; the reference gives the names and how they are spread over files.
    bridge.hf_pretrained.config = AutoBridge.from_auto_config(str(source), str(reference)).hf_pretrained
    bridge.export_ckpt(str(source), str(out), show_progress=True, strict=True)


# The save starts a process, which imports this file again.
if __name__ == "__main__":
    main()
