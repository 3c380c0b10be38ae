"""Rotary position embeddings of new tokens on their way into the paged cache."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.backends.cuda.rope_append import CudaRopeAppend
from warploom.attention.backends.reference.rope_append import ReferenceRopeAppend
from warploom.attention.paged_cache import check_conversion, check_page_table, check_places, unpack_paged_kv_cache
from warploom.attention.problems.rope import RopeScaling
from warploom.attention.problems.rope_append import RopeAppendProblem
from warploom.attention.rope_call import ROPE_DTYPES, check_rotary_dim, check_scaling
from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.settings import settings
from warploom.core.tensors import Checker, have_unit_strides
from warploom.core.torch_ops import register_op

__all__ = ["apply_rope_append_paged_kv_cache"]

ROPE_APPEND = Operator(
    "apply_rope_append_paged_kv_cache", family="attention", backends=(CudaRopeAppend(), ReferenceRopeAppend())
)


def apply_rope_append_paged_kv_cache(
    q: Any,
    k: Any,
    v: Any,
    positions: Any,
    batch_indices: Any,
    paged_kv_cache: Any,
    kv_indices: Any,
    kv_indptr: Any,
    kv_last_page_len: Any,
    kv_layout: str = "NHD",
    *,
    rotary_dim: int | None = None,
    interleave: bool = False,
    rope_scale: float = 1.0,
    rope_theta: float = 1e4,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    old_context_len: int = 0,
    out: Any = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Rotate new queries and keys by their positions, and write keys and values to the pages of their requests.

    What `apply_rope_pos_ids` and then `append_paged_kv_cache` do, in one pass: keys are rounded to their own dtype
    before they become the cache's. Nothing is copied to the host, so the call can be captured in a graph.

    Parameters
    ----------
    q : torch.Tensor
        `[nnz, num_qo_heads, head_dim]`, float16, bfloat16 or float32.
    k, v : torch.Tensor
        `[nnz, num_kv_heads, head_dim]` of the dtype of `q`; `v` may have another last dimension if the cache is a
        pair. They stay as they are.
    positions : torch.Tensor
        `[nnz]`, int32 (int64 is converted): the place of a token in its request, by which it is rotated too.
    batch_indices : torch.Tensor
        `[nnz]`, int32 (int64 is converted), the request of a token. A token with a negative index or position is
        padding: its query passes as it is, and nothing is written to the cache.
    paged_kv_cache, kv_indices, kv_indptr, kv_last_page_len, kv_layout
        As in `append_paged_kv_cache`; the dtype of the cache too.
    rotary_dim : int, optional
        How many components of a head are rotated, the first ones; an even number. Default: all.
    interleave : bool
        Pairs are components `(2i, 2i + 1)` if true, else `(i, i + rotary_dim / 2)`.
    rope_scale, rope_theta : float
        Divisor and base of the frequencies, as in `apply_rope`.
    low_freq_factor, high_freq_factor, old_context_len
        With an `old_context_len` above 0, the frequencies are those of Llama 3.1, as in `apply_llama31_rope`.
    out : torch.Tensor, optional
        Buffer for the rotated queries, or `q` itself.
    backend : str
        "auto", "cuda" or "reference".

    Returns
    -------
    torch.Tensor
        The rotated queries, of the shape and dtype of `q`.

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device, or an odd or too large `rotary_dim`. Rows beyond the pages of
        their request and page indices outside the cache are found on the CPU, and on a GPU when the setting
        `debug_checks` is on.

    References
    ----------
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021 (arXiv:2104.09864).

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import apply_rope_append_paged_kv_cache, get_batch_indices_positions
    >>> kv_indptr, kv_indices = torch.tensor([0, 2, 3]).int(), torch.tensor([4, 1, 0]).int()
    >>> last_page_len = torch.tensor([1, 3]).int()                      # lengths 5 and 3 after the append
    >>> requests, where = get_batch_indices_positions(torch.tensor([0, 1, 4]).int(), torch.tensor([5, 3]).int(), 4)
    >>> cache = torch.zeros(6, 2, 4, 8, 64)                             # 6 pages of 4 entries, 8 heads
    >>> q, k, v = torch.ones(4, 32, 64), torch.ones(4, 8, 64), torch.ones(4, 8, 64)
    >>> tables = kv_indices, kv_indptr, last_page_len
    >>> q_rope = apply_rope_append_paged_kv_cache(q, k, v, where, requests, cache, *tables)
    >>> round(cache[1, 0, 0, 0, 0].item(), 4), bool((q_rope[0, 0] == cache[1, 0, 0, 0]).all())  # cos 4 - sin 4
    (0.1032, True)
    """
    check = Checker("apply_rope_append_paged_kv_cache")
    query = check.tensor("q", q, "nnz num_qo_heads head_dim", dtype=ROPE_DTYPES)
    k_cache, v_cache = unpack_paged_kv_cache(check, paged_kv_cache, kv_layout)
    key = check.tensor("k", k, "nnz num_kv_heads head_dim", dtype=query.dtype)
    value = check.tensor("v", v, "nnz num_kv_heads value_dim", dtype=query.dtype)
    check_conversion(check, "k", key, k_cache)
    rotated = check["head_dim"] if rotary_dim is None else rotary_dim
    check_rotary_dim(check, "rotary_dim", rotated, check["head_dim"])
    check_scaling(check, RopeScaling(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len))
    table = check_page_table(check, batch_indices, positions, kv_indices, kv_indptr, kv_last_page_len)
    # An operator's outputs must not be among its inputs.
    target = query if out is q else check.output("out", out, tuple(query.shape), query.dtype)
    source = None if out is q else query
    _rope_append(target, k_cache, v_cache, source, key, value, *table, rotated, interleave, rope_scale, rope_theta,
                 low_freq_factor, high_freq_factor, old_context_len, backend)  # fmt: skip
    return target


@register_op(
    "apply_rope_append_paged_kv_cache(Tensor(a!) q_out, Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor? q, Tensor k, "
    "Tensor v, Tensor batch_indices, Tensor positions, Tensor kv_indices, Tensor kv_indptr, SymInt rotary_dim, "
    "bool interleave, float rope_scale, float rope_theta, float low_freq_factor, float high_freq_factor, "
    "SymInt old_context_len, str backend) -> ()"
)
def _rope_append(
    q_out: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    rotary_dim: int,
    interleave: bool,
    rope_scale: float,
    rope_theta: float,
    low_freq_factor: float,
    high_freq_factor: float,
    old_context_len: int,
    backend: str,
) -> None:
    q = q_out if q is None else q
    tensors = q_out, k_cache, v_cache, q, k, v
    table = batch_indices, positions, kv_indices, kv_indptr
    problem = RopeAppendProblem(
        dtype=q.dtype,
        cache_dtype=k_cache.dtype,
        num_kv_heads=k.shape[1],
        head_dim=k.shape[2],
        value_dim=v.shape[2],
        rotary_dim=rotary_dim,
        interleave=interleave,
        unit_strides=have_unit_strides(*tensors),
        **RopeAppendProblem.where(k_cache),
    )
    chosen = ROPE_APPEND.select(problem, backend).backend
    if settings.debug_checks or not k_cache.is_cuda:
        check_places(ROPE_APPEND.name, k_cache, *table)
    scaling = RopeScaling(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len)
    with device_guard(k_cache):
        chosen.run(problem, scaling, *tensors, *table)
