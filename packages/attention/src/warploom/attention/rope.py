"""Rotary position embeddings of queries and keys."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.problems.rope import RopeScaling
from warploom.attention.rope_call import IN_PLACE, rotate_by_cache, rotate_by_position

__all__ = [
    "apply_llama31_rope",
    "apply_llama31_rope_inplace",
    "apply_llama31_rope_pos_ids",
    "apply_llama31_rope_pos_ids_inplace",
    "apply_rope",
    "apply_rope_inplace",
    "apply_rope_pos_ids",
    "apply_rope_pos_ids_inplace",
    "apply_rope_with_cos_sin_cache",
    "apply_rope_with_cos_sin_cache_inplace",
]

_Pair = tuple[torch.Tensor, torch.Tensor]


def apply_rope(
    q: Any,
    k: Any,
    indptr: Any,
    offsets: Any,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1,
    rope_theta: float = 1e4,
    *,
    out: tuple[Any, Any] | None = None,
    backend: str = "auto",
) -> _Pair:
    """Rotate queries and keys of ragged requests by their positions.

    Pair `i` of a head turns by `position * rope_theta ** (-2 i / rotary_dim) / rope_scale` radians. Frequencies are
    computed in float64 and rounded to float32; angles, sines and the rotation are float32.

    Parameters
    ----------
    q, k : torch.Tensor
        `[nnz, num_q_heads, head_dim]` and `[nnz, num_k_heads, head_dim]`, float16, bfloat16 or float32.
    indptr : torch.Tensor
        `[batch + 1]`, int32 or int64, where each request's rows start. Rows from `indptr[-1]` on are padding and stay
        as they are.
    offsets : torch.Tensor
        `[batch]`, int32 or int64, position of each request's first row.
    rotary_dim : int, optional
        How many components of a head are rotated, the first ones; an even number. Default: all.
    interleave : bool
        Pairs are components `(2i, 2i + 1)` if true, else `(i, i + rotary_dim / 2)`.
    rope_scale, rope_theta : float
        Divisor and base of the frequencies.
    out : tuple of torch.Tensor, optional
        Buffers for both results.
    backend : str
        "auto", "cuda" or "reference".

    Returns
    -------
    q_rope, k_rope : torch.Tensor
        Of the shapes and dtypes of `q` and `k`.

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device, or an odd or too large `rotary_dim`.

    References
    ----------
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021 (arXiv:2104.09864).

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_rope
    >>> q, k = torch.ones(3, 4, 64), torch.ones(3, 1, 64)
    >>> q_rope, k_rope = apply_rope(q, k, torch.tensor([0, 2, 3]), torch.tensor([0, 5]))
    >>> bool((q_rope[0] == q[0]).all()), round(q_rope[2, 0, 0].item(), 4)      # position 0; cos 5 - sin 5
    (True, 1.2426)
    """
    scaling = RopeScaling(rope_scale, rope_theta)
    return rotate_by_position(
        "apply_rope", q, k, None, (indptr, offsets), rotary_dim, interleave, scaling, out, backend
    )


def apply_rope_inplace(
    q: Any,
    k: Any,
    indptr: Any,
    offsets: Any,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1,
    rope_theta: float = 1e4,
    *,
    backend: str = "auto",
) -> None:
    """`apply_rope` that writes its results to `q` and `k`.

    Parameters
    ----------
    q, k
        As in `apply_rope`; written in place.
    indptr, offsets, rotary_dim, interleave, rope_scale, rope_theta, backend
        As in `apply_rope`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_rope_inplace
    >>> q, k = torch.ones(3, 4, 64), torch.ones(3, 1, 64)
    >>> apply_rope_inplace(q, k, torch.tensor([0, 2, 3]), torch.tensor([0, 5]))
    """
    scaling = RopeScaling(rope_scale, rope_theta)
    rotate_by_position(
        "apply_rope_inplace", q, k, None, (indptr, offsets), rotary_dim, interleave, scaling, IN_PLACE, backend
    )


def apply_rope_pos_ids(
    q: Any,
    k: Any,
    pos_ids: Any,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1,
    rope_theta: float = 1e4,
    *,
    out: tuple[Any, Any] | None = None,
    backend: str = "auto",
) -> _Pair:
    """Rotate queries and keys by given positions.

    Parameters
    ----------
    pos_ids : torch.Tensor
        `[nnz]`, int32 or int64, the position of every row.
    q, k, rotary_dim, interleave, rope_scale, rope_theta, out, backend
        As in `apply_rope`.

    Returns
    -------
    q_rope, k_rope : torch.Tensor
        Of the shapes and dtypes of `q` and `k`.

    Raises
    ------
    ArgumentError
        As in `apply_rope`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_rope_pos_ids
    >>> q_rope, k_rope = apply_rope_pos_ids(torch.ones(2, 4, 64), torch.ones(2, 1, 64), torch.tensor([7, 0]))
    """
    scaling = RopeScaling(rope_scale, rope_theta)
    return rotate_by_position("apply_rope_pos_ids", q, k, pos_ids, None, rotary_dim, interleave, scaling, out, backend)


def apply_rope_pos_ids_inplace(
    q: Any,
    k: Any,
    pos_ids: Any,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1,
    rope_theta: float = 1e4,
    *,
    backend: str = "auto",
) -> None:
    """`apply_rope_pos_ids` that writes its results to `q` and `k`.

    Parameters
    ----------
    q, k
        As in `apply_rope`; written in place.
    pos_ids, rotary_dim, interleave, rope_scale, rope_theta, backend
        As in `apply_rope_pos_ids`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_rope_pos_ids_inplace
    >>> apply_rope_pos_ids_inplace(torch.ones(2, 4, 64), torch.ones(2, 1, 64), torch.tensor([7, 0]))
    """
    scaling = RopeScaling(rope_scale, rope_theta)
    rotate_by_position(
        "apply_rope_pos_ids_inplace", q, k, pos_ids, None, rotary_dim, interleave, scaling, IN_PLACE, backend
    )


def apply_llama31_rope(
    q: Any,
    k: Any,
    indptr: Any,
    offsets: Any,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1,
    high_freq_factor: float = 4,
    old_context_len: int = 8192,
    *,
    out: tuple[Any, Any] | None = None,
    backend: str = "auto",
) -> _Pair:
    """`apply_rope` with the frequencies of Llama 3.1, which slow the pairs that turn rarely.

    Parameters
    ----------
    q, k, indptr, offsets, rotary_dim, interleave, rope_theta, out, backend
        As in `apply_rope`.
    rope_scale : float
        Divisor of the frequencies that turn less than `low_freq_factor` times within `old_context_len` positions.
    low_freq_factor, high_freq_factor : float
        Frequencies that turn more than `high_freq_factor` times are kept, those between are interpolated linearly.
    old_context_len : int
        Context length, in positions, of the model before its extension.

    Returns
    -------
    q_rope, k_rope : torch.Tensor
        Of the shapes and dtypes of `q` and `k`.

    Raises
    ------
    ArgumentError
        As in `apply_rope`, or `high_freq_factor` is not above `low_freq_factor`.

    References
    ----------
    Dubey et al., "The Llama 3 Herd of Models", 2024 (arXiv:2407.21783).

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_llama31_rope
    >>> q, k = torch.ones(3, 4, 64), torch.ones(3, 1, 64)
    >>> q_rope, k_rope = apply_llama31_rope(q, k, torch.tensor([0, 3]), torch.tensor([5]))
    """
    scaling = RopeScaling(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len)
    return rotate_by_position(
        "apply_llama31_rope", q, k, None, (indptr, offsets), rotary_dim, interleave, scaling, out, backend
    )


def apply_llama31_rope_inplace(
    q: Any,
    k: Any,
    indptr: Any,
    offsets: Any,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1,
    high_freq_factor: float = 4,
    old_context_len: int = 8192,
    *,
    backend: str = "auto",
) -> None:
    """`apply_llama31_rope` that writes its results to `q` and `k`.

    Parameters
    ----------
    q, k
        As in `apply_rope`; written in place.
    indptr, offsets, rotary_dim, interleave, rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len,
    backend
        As in `apply_llama31_rope`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_llama31_rope_inplace
    >>> apply_llama31_rope_inplace(torch.ones(3, 4, 64), torch.ones(3, 1, 64), torch.tensor([0, 3]), torch.tensor([5]))
    """
    scaling = RopeScaling(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len)
    name = "apply_llama31_rope_inplace"
    rotate_by_position(name, q, k, None, (indptr, offsets), rotary_dim, interleave, scaling, IN_PLACE, backend)


def apply_llama31_rope_pos_ids(
    q: Any,
    k: Any,
    pos_ids: Any,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1,
    high_freq_factor: float = 4,
    old_context_len: int = 8192,
    *,
    out: tuple[Any, Any] | None = None,
    backend: str = "auto",
) -> _Pair:
    """`apply_rope_pos_ids` with the frequencies of Llama 3.1; `apply_llama31_rope` explains them.

    Parameters
    ----------
    q, k, pos_ids, out
        As in `apply_rope_pos_ids`.
    rotary_dim, interleave, rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len, backend
        As in `apply_llama31_rope`.

    Returns
    -------
    q_rope, k_rope : torch.Tensor
        Of the shapes and dtypes of `q` and `k`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_llama31_rope_pos_ids
    >>> q_rope, k_rope = apply_llama31_rope_pos_ids(torch.ones(2, 4, 64), torch.ones(2, 1, 64), torch.tensor([7, 0]))
    """
    scaling = RopeScaling(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len)
    return rotate_by_position(
        "apply_llama31_rope_pos_ids", q, k, pos_ids, None, rotary_dim, interleave, scaling, out, backend
    )


def apply_llama31_rope_pos_ids_inplace(
    q: Any,
    k: Any,
    pos_ids: Any,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 8,
    rope_theta: float = 5e5,
    low_freq_factor: float = 1,
    high_freq_factor: float = 4,
    old_context_len: int = 8192,
    *,
    backend: str = "auto",
) -> None:
    """`apply_llama31_rope_pos_ids` that writes its results to `q` and `k`.

    Parameters
    ----------
    q, k
        As in `apply_rope`; written in place.
    pos_ids
        As in `apply_rope_pos_ids`.
    rotary_dim, interleave, rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len, backend
        As in `apply_llama31_rope`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_llama31_rope_pos_ids_inplace
    >>> apply_llama31_rope_pos_ids_inplace(torch.ones(2, 4, 64), torch.ones(2, 1, 64), torch.tensor([7, 0]))
    """
    scaling = RopeScaling(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len)
    rotate_by_position(
        "apply_llama31_rope_pos_ids_inplace", q, k, pos_ids, None, rotary_dim, interleave, scaling, IN_PLACE, backend
    )


def apply_rope_with_cos_sin_cache(
    positions: Any,
    query: Any,
    key: Any,
    head_size: int,
    cos_sin_cache: Any,
    is_neox: bool = True,
    *,
    out: tuple[Any, Any] | None = None,
    backend: str = "auto",
) -> _Pair:
    """Rotate queries and keys with precomputed cosines and sines, as vLLM and SGLang keep them.

    Parameters
    ----------
    positions : torch.Tensor
        `[nnz]`, int32 or int64, the row of the cache for every token.
    query, key : torch.Tensor
        `[nnz, num_q_heads * head_size]` and `[nnz, num_k_heads * head_size]`, float16, bfloat16 or float32.
    head_size : int
        Components of a head.
    cos_sin_cache : torch.Tensor
        `[max_position, rotary_dim]`, floating: the cosines of all pairs, then their sines. Better float32: a cache of
        16 bits gives 16-bit angles.
    is_neox : bool
        Pairs are components `(i, i + rotary_dim / 2)` if true, else `(2i, 2i + 1)`.
    out : tuple of torch.Tensor, optional
        Buffers for both results.
    backend : str
        "auto", "cuda" or "reference".

    Returns
    -------
    query_rope, key_rope : torch.Tensor
        Of the shapes and dtypes of `query` and `key`.

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device. Positions outside the cache are found on the CPU, and on a GPU
        when the setting `debug_checks` is on.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_rope_with_cos_sin_cache
    >>> cache = torch.tensor([[1.0, 0.0], [0.0, 1.0]])           # one pair; position 1 is a quarter turn
    >>> query, key = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0, 6.0]])
    >>> apply_rope_with_cos_sin_cache(torch.tensor([1]), query, key, 3, cache)[0].tolist()
    [[-2.0, 1.0, 3.0]]
    """
    op = "apply_rope_with_cos_sin_cache"
    return rotate_by_cache(op, positions, query, key, head_size, cos_sin_cache, is_neox, out, backend)


def apply_rope_with_cos_sin_cache_inplace(
    positions: Any,
    query: Any,
    key: Any,
    head_size: int,
    cos_sin_cache: Any,
    is_neox: bool = True,
    *,
    backend: str = "auto",
) -> None:
    """`apply_rope_with_cos_sin_cache` that writes its results to `query` and `key`.

    Parameters
    ----------
    query, key
        As in `apply_rope_with_cos_sin_cache`; written in place.
    positions, head_size, cos_sin_cache, is_neox, backend
        As in `apply_rope_with_cos_sin_cache`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_rope_with_cos_sin_cache_inplace
    >>> cache = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> query, key = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0, 6.0]])
    >>> apply_rope_with_cos_sin_cache_inplace(torch.tensor([1]), query, key, 3, cache)
    >>> key.tolist()
    [[-5.0, 4.0, 6.0]]
    """
    op = "apply_rope_with_cos_sin_cache_inplace"
    rotate_by_cache(op, positions, query, key, head_size, cos_sin_cache, is_neox, IN_PLACE, backend)
