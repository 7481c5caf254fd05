"""The whole job on one machine, small and real: `poro demo` takes text to a continued-pretrained Hugging Face model."""

from megatron_poro.demo.run import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
