"""Continued pretraining of open language models on Slurm clusters, built on megatron-core.

Importing the package loads no torch; each part is imported by name: `megatron_poro.config`, `megatron_poro.conversion`, ...
"""

__version__ = "0.1.0"
