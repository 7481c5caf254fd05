"""The fitted numbers: one efficiency of each type of device and one fixed cost of a step, and where they come from.

`benchmarks/planner.py --runs FILE.csv --fit` fits them on the training half of published runs, which is split by source;
benchmarks/RESULTS.md has the errors on the other half. Nothing else in the planner is fitted.
"""

TRAINING = (
    "https://github.com/NVIDIA/dgxc-benchmarking/blob/v25.03/llama3.1/README_405b.md",
    "https://arxiv.org/abs/2205.05198",
    "https://github.com/bigscience-workshop/bigscience/blob/master/train/tr11-176B-ml/chronicles-prequel.md",
)
"""The documents that were fitted on: rows of any other are held out."""

FIXED_SECONDS = 0.1
"""Of every step, besides what is counted; fitted together with the two efficiencies below."""

H100 = 0.59
"""Share of the bf16 peak that matrix products reach in training; training half: the 405B page of dgxc-benchmarking v25.03."""
A100 = 0.585
"""The same; training half: Korthikanti et al. 2022 (arXiv 2205.05198) and the prequel of BLOOM's chronicles."""
MI250X = 0.39
"""The same; of Megatron-DeepSpeed's 13B on one node of LUMI, 74.9 TFLOP/s a GCD. That table does not say the sequence length:
GPT-3's shape and 2,048 tokens were taken. On two nodes it has 65.7 and 72.0, so the bracket of published rates is printed too."""
ACHIEVABLE_H100, ACHIEVABLE_MI300X = 0.803, 0.511
"""Best share of the peak in single products (stas00/ml-engineering, MAMF): 794.5 of 989.4 and 668 of 1,307.4 TFLOP/s."""

EFFICIENCY = {
    "A100": A100,
    "H100": H100,
    "H200": H100,
    "GH200": H100,
    "MI250X": MI250X,
    "MI300X": round(H100 * ACHIEVABLE_MI300X / ACHIEVABLE_H100, 3),
}
"""H200 and GH200 have the H100's chip. No published run on MI300X had a layout: it gets the H100's share of what is achievable."""

SOURCES = (
    "efficiency of products: fitted on the training half of published runs, for MI250X on one published rate, for MI300X not "
    "fitted (megatron_poro/planning/calibration.py)",
    "activations: Korthikanti et al. 2022, arXiv 2205.05198; schedules: Narayanan et al. 2021, arXiv 2104.04473, megatron-core",
    "weights and optimizer: Megatron-LM's theoretical_memory_usage.py",
    "interval between saves: Young 1974, Daly 2006",
)
