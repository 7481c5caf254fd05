"""Rotary frequencies with Llama 3's scaling, every number from the model's config.

megatron-core scales with fixed factors; computing the frequencies here carries any of them.
"""

import math

import torch

from megatron_poro.config import ModelConfig, head_dim


def rotary_frequencies(model: ModelConfig) -> torch.Tensor:
    """Inverse frequencies, float32 [head_dim / 2].

    Wavelengths longer than original_length / low_freq_factor are stretched by the scaling factor, those shorter than
    original_length / high_freq_factor are kept, and those between are interpolated. Source: Meta's Llama 3.1 reference model.
    """
    dim = head_dim(model)
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    frequencies = 1.0 / (model.rope_theta**exponents)
    if model.rope_scaling_factor == 1.0:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    low, high = model.rope_low_freq_factor, model.rope_high_freq_factor
    smooth = (model.rope_original_length / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / model.rope_scaling_factor + smooth * frequencies
    long = wavelengths > model.rope_original_length / low
    short = wavelengths < model.rope_original_length / high
    return torch.where(long, frequencies / model.rope_scaling_factor, torch.where(short, frequencies, blended))
