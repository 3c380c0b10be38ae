"""Attention of one request over contiguous keys and values."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.calls import Scale, combined_scale, outputs, single_attention
from warploom.attention.options import AttentionOptions
from warploom.attention.variants.base import AttentionVariant
from warploom.core.tensors import Checker

__all__ = ["single_decode_with_kv_cache", "single_prefill_with_kv_cache", "single_prefill_with_kv_cache_return_lse"]


def single_decode_with_kv_cache(
    q: Any,
    k: Any,
    v: Any,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    use_tensor_cores: bool = False,
    q_scale: Scale = None,
    k_scale: Scale = None,
    v_scale: Scale = None,
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    sm_scale: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    return_lse: bool = False,
    *,
    out: Any = None,
    lse: Any = None,
    o_dtype: torch.dtype | str | None = None,
    sinks: Any = None,
    alibi_slopes: Any = None,
    lse_base: str = "log2",
    variant: AttentionVariant | None = None,
    variant_args: tuple[Any, ...] = (),
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of one new token over the keys and values of its request.

    Parameters
    ----------
    q : tensor ``[num_qo_heads, head_dim]``
        float16, bfloat16, float32 or fp8. With RoPE its position is ``kv_len - 1``.
    k, v : tensor ``[kv_len, num_kv_heads, head_dim]``
        Of the dtype of `q` or fp8; ``[num_kv_heads, kv_len, head_dim]`` if `kv_layout` is "HND". Any strides.
    kv_layout : {"NHD", "HND"}
        Order of the dimensions of `k` and `v`.
    pos_encoding_mode : {"NONE", "ROPE_LLAMA", "ALIBI"}
        Positions applied on the fly: rotation of queries and keys, or linear biases.
    use_tensor_cores : bool
        Accepted for compatibility; backends decide.
    q_scale, k_scale, v_scale : float or tensor, optional
        Scales of quantised inputs, one for all or one per head.
    window_left : int
        Keys before the query that it sees, besides its own position; -1 for all.
    logits_soft_cap : float, optional
        ``cap * tanh(logits / cap)``; None or 0 for none.
    sm_scale : float, optional
        Scale of the logits, by default ``head_dim ** -0.5``.
    rope_scale, rope_theta : float, optional
        Position divisor (1) and base (1e4) of RoPE.
    return_lse : bool
        Also return the log-sum-exp.
    out, lse : tensor, optional
        Buffers for the results.
    o_dtype : torch.dtype, optional
        Of the output: that of `q`, or bfloat16 for fp8 queries.
    sinks : tensor ``[num_qo_heads]``, optional
        One more logit per head that takes part in the softmax and carries no value.
    alibi_slopes : tensor ``[num_qo_heads]``, optional
        float32 slopes of ALiBi, by default those of the paper.
    lse_base : {"log2", "e"}
        Base of the log-sum-exp.
    variant : AttentionVariant, optional
        A change of your own to logits or mask; `variant_args` are its tensors and scalars.
    backend : str
        "auto", "sdpa", "cutlass" or "reference".

    Returns
    -------
    tensor ``[num_qo_heads, head_dim]``, or with `return_lse` also ``[num_qo_heads]`` float32
        An empty cache gives 0 and -inf.

    Raises
    ------
    ArgumentError
        A tensor or option that does not fit.
    UnsupportedError
        No backend, or not the one asked for, serves the request.

    References
    ----------
    Dao, "Flash-Decoding for long-context inference", 2023.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import single_decode_with_kv_cache
    >>> q, k, v = torch.randn(32, 128), torch.randn(77, 8, 128), torch.randn(77, 8, 128)
    >>> single_decode_with_kv_cache(q, k, v).shape
    torch.Size([32, 128])
    """
    check = Checker("single_decode_with_kv_cache")
    q = check.tensor("q", q, "num_qo_heads head_dim_qk").unsqueeze(0)
    out = None if out is None else check.tensor("out", out, "num_qo_heads _").unsqueeze(0)
    lse = None if lse is None else check.tensor("lse", lse, "num_qo_heads").unsqueeze(0)
    found = _single(
        check, q, k, v, out, lse, phase="decode", kv_layout=kv_layout, return_lse=return_lse,
        scales=(q_scale, k_scale, v_scale), o_dtype=o_dtype, sinks=sinks, alibi_slopes=alibi_slopes,
        variant=variant, variant_args=variant_args, backend=backend, causal=False, window_left=window_left,
        logits_soft_cap=logits_soft_cap, sm_scale=sm_scale, pos_encoding_mode=pos_encoding_mode,
        rope_scale=rope_scale, rope_theta=rope_theta, lse_base=lse_base,
    )  # fmt: skip
    return (found[0][0], found[1][0]) if return_lse else found[0][0]


def single_prefill_with_kv_cache(
    q: Any,
    k: Any,
    v: Any,
    scale_q: Scale = None,
    scale_k: Scale = None,
    scale_v: Scale = None,
    o_dtype: torch.dtype | str | None = None,
    custom_mask: Any = None,
    packed_custom_mask: Any = None,
    causal: bool = False,
    kv_layout: str = "NHD",
    pos_encoding_mode: str = "NONE",
    use_fp16_qk_reduction: bool = False,
    sm_scale: float | None = None,
    window_left: int = -1,
    logits_soft_cap: float | None = None,
    rope_scale: float | None = None,
    rope_theta: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    *,
    out: Any = None,
    lse: Any = None,
    sinks: Any = None,
    alibi_slopes: Any = None,
    lse_base: str = "log2",
    variant: AttentionVariant | None = None,
    variant_args: tuple[Any, ...] = (),
) -> Any:
    """Attention of several new tokens, which are the tail of their request's keys and values.

    Parameters
    ----------
    q : tensor ``[qo_len, num_qo_heads, head_dim_qk]``
        float16, bfloat16, float32 or fp8.
    k : tensor ``[kv_len, num_kv_heads, head_dim_qk]``
        Of the dtype of `q` or fp8; ``[num_kv_heads, kv_len, head_dim_qk]`` if `kv_layout` is "HND". Any strides.
    v : tensor ``[kv_len, num_kv_heads, head_dim_vo]``
        Like `k`; its head dimension may differ.
    scale_q, scale_k, scale_v : float or tensor, optional
        Scales of quantised inputs, one for all or one per head.
    o_dtype : torch.dtype, optional
        Of the output: that of `q`, or bfloat16 for fp8 queries.
    custom_mask : bool tensor ``[qo_len * kv_len]`` or ``[qo_len, kv_len]``, optional
        True where the query sees the key; takes the place of `causal`.
    packed_custom_mask : uint8 tensor, optional
        The same bit-packed, little-endian (see `packbits`).
    causal : bool
        Query ``i`` sees the keys up to ``kv_len - qo_len + i``: masks align bottom-right.
    kv_layout, pos_encoding_mode, sm_scale, window_left, logits_soft_cap, rope_scale, rope_theta
        As `single_decode_with_kv_cache`.
    use_fp16_qk_reduction : bool
        Accepted for compatibility; products accumulate in float32.
    backend : str
        "auto", "sdpa", "cutlass" or "reference".
    return_lse : bool
        Also return the log-sum-exp.
    out, lse, sinks, alibi_slopes, lse_base, variant, variant_args
        As `single_decode_with_kv_cache`.

    Returns
    -------
    tensor ``[qo_len, num_qo_heads, head_dim_vo]``, or with `return_lse` also ``[qo_len, num_qo_heads]`` float32
        A query that sees no key gives 0 and -inf.

    Raises
    ------
    ArgumentError
        A tensor or option that does not fit.
    UnsupportedError
        No backend, or not the one asked for, serves the request.

    References
    ----------
    Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import single_prefill_with_kv_cache
    >>> q, k, v = torch.randn(5, 8, 64), torch.randn(77, 2, 64), torch.randn(77, 2, 64)
    >>> single_prefill_with_kv_cache(q, k, v, causal=True).shape
    torch.Size([5, 8, 64])
    """
    check = Checker("single_prefill_with_kv_cache")
    q = check.tensor("q", q, "qo_len num_qo_heads head_dim_qk")
    found = _single(
        check, q, k, v, out, lse, phase="prefill", kv_layout=kv_layout, return_lse=return_lse,
        scales=(scale_q, scale_k, scale_v), o_dtype=o_dtype, sinks=sinks, alibi_slopes=alibi_slopes,
        variant=variant, variant_args=variant_args, backend=backend, custom_mask=custom_mask,
        packed_custom_mask=packed_custom_mask, causal=causal, window_left=window_left,
        logits_soft_cap=logits_soft_cap, sm_scale=sm_scale, pos_encoding_mode=pos_encoding_mode,
        rope_scale=rope_scale, rope_theta=rope_theta, lse_base=lse_base,
    )  # fmt: skip
    return found if return_lse else found[0]


def single_prefill_with_kv_cache_return_lse(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`single_prefill_with_kv_cache` with ``return_lse=True``.

    Parameters
    ----------
    *args, **kwargs
        As `single_prefill_with_kv_cache`, without `return_lse`.

    Returns
    -------
    tuple
        Output ``[qo_len, num_qo_heads, head_dim_vo]`` and log-sum-exp ``[qo_len, num_qo_heads]`` float32.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import single_prefill_with_kv_cache_return_lse
    >>> q, k, v = torch.randn(2, 4, 64), torch.randn(7, 4, 64), torch.randn(7, 4, 64)
    >>> [x.shape for x in single_prefill_with_kv_cache_return_lse(q, k, v)]
    [torch.Size([2, 4, 64]), torch.Size([2, 4])]
    """
    kwargs["return_lse"] = True
    return single_prefill_with_kv_cache(*args, **kwargs)


def _single(
    check: Checker,
    q: torch.Tensor,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    *,
    phase: str,
    kv_layout: str,
    return_lse: bool,
    scales: tuple[Scale, Scale, Scale],
    o_dtype: Any,
    sinks: Any,
    alibi_slopes: Any,
    variant: AttentionVariant | None,
    variant_args: tuple[Any, ...],
    backend: str,
    custom_mask: Any = None,
    packed_custom_mask: Any = None,
    **choices: Any,
) -> tuple[torch.Tensor, Any]:
    """Check everything, then call the registered operator; `q` is `[qo_len, num_qo_heads, head_dim_qk]`."""
    k, v = _keys_values(check, k, v, kv_layout)
    options = AttentionOptions(
        num_qo_heads=q.shape[1], num_kv_heads=k.shape[1], head_dim_qk=q.shape[2], head_dim_vo=v.shape[2],
        kv_layout=kv_layout, dtype_q=q.dtype, dtype_kv=k.dtype, dtype_o=o_dtype if out is None else out.dtype,
        variant=variant, **choices,
    ).resolve(check.op)  # fmt: skip
    heads = options.num_qo_heads
    out, lse = outputs(check, options, q.shape[0], out, lse, return_lse)
    sinks = check.tensor("sinks", sinks, "num_qo_heads", optional=True)
    slopes = check.tensor("alibi_slopes", alibi_slopes, "num_qo_heads", dtype=torch.float32, optional=True)
    extra_tensors, extra_scalars = ([], []) if variant is None else variant.bind(check.op, variant_args)
    logits_scale, logits_scales = combined_scale(check, heads, scale_q=scales[0], scale_k=scales[1])
    value_scale, value_scales = combined_scale(check, heads, scale_v=scales[2])
    if custom_mask is not None:
        shaped = getattr(custom_mask, "ndim", 1) != 1
        check.tensor("custom_mask", custom_mask, "qo_len kv_len" if shaped else "_", dtype=torch.bool)
        custom_mask = check.tensor("custom_mask", custom_mask, "*mask", dtype=torch.bool).reshape(-1)
    if packed_custom_mask is not None:
        packed_custom_mask = check.tensor("packed_custom_mask", packed_custom_mask, "_", dtype=torch.uint8)
    single_attention(
        out, lse, q, k, v, custom_mask, packed_custom_mask, sinks, slopes, logits_scales, value_scales,
        extra_tensors, extra_scalars, check.op, phase, kv_layout, options.causal, options.pos_encoding_mode,
        options.sm_scale, options.window_left, options.logits_soft_cap, options.rope_scale, options.rope_theta,
        logits_scale, value_scale, options.lse_base, 0 if variant is None else variant.handle, backend,
    )  # fmt: skip
    return out, lse


def _keys_values(check: Checker, k: Any, v: Any, kv_layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Views `[kv_len, num_kv_heads, head_dim]` of keys and values in either layout."""
    check.require(kv_layout in ("NHD", "HND"), "kv_layout", "'NHD' or 'HND'", repr(kv_layout))
    dims = "kv_len num_kv_heads" if kv_layout == "NHD" else "num_kv_heads kv_len"
    k = check.tensor("k", k, f"{dims} head_dim_qk")
    v = check.tensor("v", v, f"{dims} head_dim_vo", dtype=k.dtype)
    return (k, v) if kv_layout == "NHD" else (k.transpose(0, 1), v.transpose(0, 1))
