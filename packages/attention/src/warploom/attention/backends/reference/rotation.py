"""The rotation of rotary position embeddings: pure torch, shared by the RoPE operators and by attention that rotates on
the fly.

Precision, on purpose the same as Hugging Face's and FlashInfer's: a frequency is computed in float64 and rounded once
to float32; the angle `position * frequency`, its cosine and sine, and the rotation are float32 (float64 if the input
is).
Positions above 2**24 are not exact in float32.

References
----------
Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021 (arXiv:2104.09864).
The piecewise rescaling of `llama31_frequencies` is that of Llama 3.1 (Dubey et al., 2024, arXiv:2407.21783).
"""

from __future__ import annotations

import math

import torch


def _exact_frequencies(rotary_dim: int, rope_theta: float, device: torch.device | str | None) -> torch.Tensor:
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim
    return torch.exp(exponents * -math.log(rope_theta))


def frequencies(
    rotary_dim: int,
    rope_scale: float = 1.0,
    rope_theta: float = 1e4,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Radians per position of each rotated pair: `rope_theta ** (-2 i / rotary_dim) / rope_scale`.

    Returns
    -------
    torch.Tensor
        `[rotary_dim / 2]`, float32.
    """
    return (_exact_frequencies(rotary_dim, rope_theta, device) / rope_scale).float()


def llama31_frequencies(
    rotary_dim: int,
    rope_scale: float = 8.0,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    old_context_len: int = 8192,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Radians per position under Llama 3.1's rule for longer contexts.

    A pair that turns more than `high_freq_factor` times within `old_context_len` keeps its frequency, one that turns
    less than `low_freq_factor` times is slowed by `rope_scale`, and the ones between are interpolated linearly.

    Returns
    -------
    torch.Tensor
        `[rotary_dim / 2]`, float32.
    """
    exact = _exact_frequencies(rotary_dim, rope_theta, device)
    turns = old_context_len * exact / (2 * math.pi)
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0)
    return ((1.0 - kept) * exact / rope_scale + kept * exact).float()


def cos_sin(positions: torch.Tensor, freqs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every pair's angle at every position.

    Parameters
    ----------
    positions : torch.Tensor
        `[*positions]`, any integer or floating dtype.
    freqs : torch.Tensor
        `[rotary_dim / 2]`, from `frequencies` or `llama31_frequencies`.

    Returns
    -------
    tuple of torch.Tensor
        Two tensors `[*positions, rotary_dim / 2]` of the dtype of `freqs`.
    """
    angles = positions.to(freqs.dtype).unsqueeze(-1) * freqs
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleave: bool = False) -> torch.Tensor:
    """Rotate the first `rotary_dim = 2 * cos.shape[-1]` components of the last dimension of `x`; the rest pass through.

    Parameters
    ----------
    x : torch.Tensor
        `[..., head_dim]`, floating; computed in float32 (float64 for a float64 `x`) and returned in the dtype of `x`.
    cos, sin : torch.Tensor
        `[..., rotary_dim / 2]`, broadcast against `x` (for `[tokens, heads, head_dim]` pass `[tokens, 1, rotary_dim /
        2]`).
    interleave : bool
        Which components form a pair: `(2i, 2i + 1)` if true (GPT-J), else `(i, i + rotary_dim / 2)` (GPT-NeoX, Llama).
    """
    pairs = cos.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    head = x[..., : 2 * pairs].to(wide)
    if interleave:
        first, second = head[..., 0::2], head[..., 1::2]
    else:
        first, second = head[..., :pairs], head[..., pairs:]
    rotated = first * cos - second * sin, second * cos + first * sin
    joined = torch.stack(rotated, dim=-1).flatten(-2) if interleave else torch.cat(rotated, dim=-1)
    return torch.cat((joined.to(x.dtype), x[..., 2 * pairs :]), dim=-1)
