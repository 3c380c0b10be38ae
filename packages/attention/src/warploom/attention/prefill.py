"""Batched prefill and append: requests with any number of new tokens, over paged or ragged keys and values."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.calls import Scale
from warploom.attention.options import AttentionOptions
from warploom.attention.table_arguments import page_table, ragged_table
from warploom.attention.tables import RequestTables
from warploom.attention.variants.base import AttentionVariant
from warploom.attention.wrapper import PlannedAttention
from warploom.core.tensors import Checker

__all__ = ["BatchPrefillWithPagedKVCacheWrapper", "BatchPrefillWithRaggedKVCacheWrapper"]


class BatchPrefillWithPagedKVCacheWrapper(PlannedAttention):
    """Prefill or append attention for a batch of requests over a paged key-value cache.

    Parameters
    ----------
    float_workspace_buffer : uint8 tensor, optional
        Scratch memory, at least `workspace_size` bytes; None allocates what a plan needs.
    kv_layout : {"NHD", "HND"}
        Layout of the pages.
    use_cuda_graph : bool
        Plans go into fixed tensors, so that `run` can be captured and replayed after the next `plan`.
    qo_indptr_buf, paged_kv_indptr_buf, paged_kv_indices_buf, paged_kv_last_page_len_buf : int32 tensors, optional
        With `use_cuda_graph`: the caller's buffers, which fix the largest batch and number of pages.
    custom_mask_buf, mask_indptr_buf : tensors, optional
        Likewise for custom masks.
    backend : str
        "auto", "sdpa", "cutlass" or "reference".
    jit_args : AttentionVariant, optional
        Your own variant; `run` takes its tensors and scalars after the cache. `jit_kwargs` must be empty.
    device : torch.device, optional
        Where the queries will be.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import BatchPrefillWithPagedKVCacheWrapper
    >>> cache = torch.randn(8, 2, 16, 4, 64)
    >>> prefill = BatchPrefillWithPagedKVCacheWrapper()
    >>> prefill.plan(torch.tensor([0, 5, 7]), torch.tensor([0, 3, 4]), torch.tensor([5, 0, 2, 7]),
    ...              torch.tensor([4, 16]), 8, 4, 64, 16, causal=True, q_data_type="float32")
    >>> prefill.run(torch.randn(7, 8, 64), cache).shape
    torch.Size([7, 8, 64])
    """

    _phase = "prefill"

    def __init__(
        self,
        float_workspace_buffer: Any = None,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: torch.Tensor | None = None,
        paged_kv_indptr_buf: torch.Tensor | None = None,
        paged_kv_indices_buf: torch.Tensor | None = None,
        paged_kv_last_page_len_buf: torch.Tensor | None = None,
        custom_mask_buf: torch.Tensor | None = None,
        mask_indptr_buf: torch.Tensor | None = None,
        backend: str = "auto",
        jit_args: AttentionVariant | None = None,
        jit_kwargs: dict[str, Any] | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        Checker(type(self).__name__).require(
            not jit_kwargs, "jit_kwargs", "empty: a variant holds its options", jit_kwargs
        )
        buffers = {
            "qo_indptr": qo_indptr_buf,
            "kv_indptr": paged_kv_indptr_buf,
            "kv_indices": paged_kv_indices_buf,
            "mask": custom_mask_buf,
        }
        super().__init__(
            float_workspace_buffer,
            kv_layout,
            backend=backend,
            variant=jit_args,
            device=device,
            graph_buffers=buffers if use_cuda_graph else None,
        )

    def workspace_size(
        self,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        q_data_type: Any = "float16",
        **choices: Any,
    ) -> int:
        """Bytes of workspace that any plan with these sizes needs, whatever the batch and lengths."""
        options = AttentionOptions(
            num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim_qk=head_dim_qk, page_size=page_size,
            kv_layout=self._kv_layout, dtype_q=q_data_type, **choices,
        )  # fmt: skip
        return self._workspace_bytes(options, "prefill", "paged")

    def plan(
        self,
        qo_indptr: Any,
        paged_kv_indptr: Any,
        paged_kv_indices: Any,
        paged_kv_last_page_len: Any,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: int | None = None,
        custom_mask: Any = None,
        packed_custom_mask: Any = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        q_data_type: torch.dtype | str = "float16",
        kv_data_type: torch.dtype | str | None = None,
        o_data_type: torch.dtype | str | None = None,
        non_blocking: bool = True,
        *,
        block_tables: Any = None,
        seq_lens: Any = None,
        fixed_split_size: int | None = None,
        disable_split_kv: bool = False,
        alibi_slopes: Any = None,
        lse_base: str = "log2",
        deterministic: bool = False,
        variant: AttentionVariant | None = None,
    ) -> None:
        """Fix the lengths, tables and options of a step; every layer's `run` reuses them.

        Parameters
        ----------
        qo_indptr : int32 or int64 tensor ``[batch + 1]``
            Where each request's new tokens start in the queries.
        paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len : int32 or int64 tensors
            ``[batch + 1]`` offsets, ``[num_pages]`` page numbers, ``[batch]`` entries of each last page. The cache
            holds the new tokens already: they are the last of each request.
        num_qo_heads, num_kv_heads, head_dim_qk, page_size, head_dim_vo : int
            Sizes.
        custom_mask : bool tensor, optional
            Flattened ``[qo_len, kv_len]`` masks of all requests, one after the other; takes the place of `causal`.
        packed_custom_mask : uint8 tensor, optional
            The same bit-packed little-endian, each request starting at a byte (see `segment_packbits`).
        causal : bool
            New tokens see the keys up to themselves.
        use_fp16_qk_reduction, non_blocking, fixed_split_size, disable_split_kv
            Accepted for compatibility.
        pos_encoding_mode, sm_scale, window_left, logits_soft_cap, rope_scale, rope_theta, alibi_slopes, lse_base
            As `single_prefill_with_kv_cache`.
        q_data_type, kv_data_type, o_data_type : torch.dtype or str
            Dtypes; the cache's and the output's default to that of the queries.
        block_tables, seq_lens : int tensors, optional
            ``[batch, max_pages]`` and ``[batch]`` in place of the three tables.
        deterministic : bool
            A request's result must not depend on the batch around it.
        variant : AttentionVariant, optional
            In place of the wrapper's `jit_args`.

        Raises
        ------
        ArgumentError, UnsupportedError, PlanError
            What does not fit, the table of backends, or more than the captured maximum.
        """
        options = self._options(
            variant, num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim_qk=head_dim_qk,
            head_dim_vo=head_dim_vo, page_size=page_size, dtype_q=q_data_type, dtype_kv=kv_data_type,
            dtype_o=o_data_type, causal=causal, sm_scale=sm_scale, window_left=window_left,
            logits_soft_cap=logits_soft_cap, pos_encoding_mode=pos_encoding_mode, rope_scale=rope_scale,
            rope_theta=rope_theta, lse_base=lse_base, deterministic=deterministic or fixed_split_size is not None,
        )  # fmt: skip
        check = Checker(self._plan_op)
        check.require(page_size >= 1, "page_size", "1 or more", page_size)
        if block_tables is not None and seq_lens is not None:
            tables = page_table(check, qo_indptr, page_size, block_table=block_tables, kv_lens=seq_lens)
        else:
            tables = self._tables(
                check, page_size, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len
            )
        tables = tables.with_mask(check, custom_mask, packed_custom_mask)
        self._set_plan(options, tables, phase=self._phase, kv_source="paged", alibi_slopes=alibi_slopes)

    begin_forward = plan

    def _tables(
        self, check: Checker, page_size: int, qo_indptr: Any, indptr: Any, indices: Any, last_page_len: Any
    ) -> RequestTables:
        return page_table(check, qo_indptr, page_size, indptr=indptr, indices=indices, last_page_len=last_page_len)

    def run(
        self,
        q: Any,
        paged_kv_cache: Any,
        *args: Any,
        q_scale: Scale = None,
        k_scale: Scale = None,
        v_scale: Scale = None,
        out: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        enable_pdl: bool | None = None,
        window_left: int | None = None,
        sinks: Any = None,
    ) -> Any:
        """Attention of one layer.

        Parameters
        ----------
        q : tensor ``[qo_indptr[-1], num_qo_heads, head_dim_qk]``
            New tokens, request after request.
        paged_kv_cache : tensor or pair of tensors
            As `BatchDecodeWithPagedKVCacheWrapper.run`.
        *args
            Tensors and scalars of the variant.
        q_scale, k_scale, v_scale, out, lse, return_lse, enable_pdl, window_left, sinks
            As `BatchDecodeWithPagedKVCacheWrapper.run`.

        Returns
        -------
        tensor ``[qo_indptr[-1], num_qo_heads, head_dim_vo]``, or with `return_lse` also its log-sum-exp
        """
        return self._run(
            q, paged_kv_cache, args=args, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, out=out, lse=lse,
            return_lse=return_lse, sinks=sinks, window_left=window_left,
        )  # fmt: skip

    forward = run

    def run_return_lse(
        self, q: Any, paged_kv_cache: Any, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`run` with ``return_lse=True``."""
        return self.run(q, paged_kv_cache, *args, **kwargs, return_lse=True)

    forward_return_lse = run_return_lse


class BatchPrefillWithRaggedKVCacheWrapper(PlannedAttention):
    """Prefill attention for a batch of requests whose keys and values lie end to end.

    Parameters
    ----------
    float_workspace_buffer : uint8 tensor, optional
        Scratch memory; None allocates what a plan needs.
    kv_layout : {"NHD", "HND"}
        Layout of keys and values.
    use_cuda_graph : bool
        Plans go into fixed tensors.
    qo_indptr_buf, kv_indptr_buf, custom_mask_buf, mask_indptr_buf : tensors, optional
        With `use_cuda_graph`: the caller's buffers.
    backend, jit_args, jit_kwargs, device
        As `BatchPrefillWithPagedKVCacheWrapper`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import BatchPrefillWithRaggedKVCacheWrapper
    >>> prefill = BatchPrefillWithRaggedKVCacheWrapper()
    >>> indptr = torch.tensor([0, 5, 7])
    >>> prefill.plan(indptr, indptr, 8, 4, 64, causal=True, q_data_type="float32")
    >>> prefill.run(torch.randn(7, 8, 64), torch.randn(7, 4, 64), torch.randn(7, 4, 64)).shape
    torch.Size([7, 8, 64])
    """

    def __init__(
        self,
        float_workspace_buffer: Any = None,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: torch.Tensor | None = None,
        kv_indptr_buf: torch.Tensor | None = None,
        custom_mask_buf: torch.Tensor | None = None,
        mask_indptr_buf: torch.Tensor | None = None,
        backend: str = "auto",
        jit_args: AttentionVariant | None = None,
        jit_kwargs: dict[str, Any] | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        Checker(type(self).__name__).require(
            not jit_kwargs, "jit_kwargs", "empty: a variant holds its options", jit_kwargs
        )
        buffers = {"qo_indptr": qo_indptr_buf, "kv_indptr": kv_indptr_buf, "mask": custom_mask_buf}
        super().__init__(
            float_workspace_buffer,
            kv_layout,
            backend=backend,
            variant=jit_args,
            device=device,
            graph_buffers=buffers if use_cuda_graph else None,
        )

    def workspace_size(
        self, num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, q_data_type: Any = "float16", **choices: Any
    ) -> int:
        """Bytes of workspace that any plan with these sizes needs, whatever the batch and lengths."""
        options = AttentionOptions(
            num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim_qk=head_dim_qk, kv_layout=self._kv_layout,
            dtype_q=q_data_type, **choices,
        )  # fmt: skip
        return self._workspace_bytes(options, "prefill", "ragged")

    def plan(
        self,
        qo_indptr: Any,
        kv_indptr: Any,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int | None = None,
        custom_mask: Any = None,
        packed_custom_mask: Any = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        sm_scale: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        q_data_type: torch.dtype | str = "float16",
        kv_data_type: torch.dtype | str | None = None,
        o_data_type: torch.dtype | str | None = None,
        non_blocking: bool = True,
        *,
        alibi_slopes: Any = None,
        lse_base: str = "log2",
        deterministic: bool = False,
        variant: AttentionVariant | None = None,
    ) -> None:
        """Fix the lengths and options of a step; every layer's `run` reuses them.

        Parameters
        ----------
        qo_indptr, kv_indptr : int32 or int64 tensors ``[batch + 1]``
            Where each request's rows start in the queries and in keys and values.
        num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo : int
            Sizes.
        custom_mask, packed_custom_mask, causal, pos_encoding_mode, use_fp16_qk_reduction, window_left, logits_soft_cap,
        sm_scale, rope_scale, rope_theta, q_data_type, kv_data_type, o_data_type, non_blocking, alibi_slopes, lse_base,
        deterministic, variant
            As `BatchPrefillWithPagedKVCacheWrapper.plan`.

        Raises
        ------
        ArgumentError, UnsupportedError, PlanError
            What does not fit, the table of backends, or more than the captured maximum.
        """
        options = self._options(
            variant, num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim_qk=head_dim_qk,
            head_dim_vo=head_dim_vo, dtype_q=q_data_type, dtype_kv=kv_data_type, dtype_o=o_data_type, causal=causal,
            sm_scale=sm_scale, window_left=window_left, logits_soft_cap=logits_soft_cap,
            pos_encoding_mode=pos_encoding_mode, rope_scale=rope_scale, rope_theta=rope_theta, lse_base=lse_base,
            deterministic=deterministic,
        )  # fmt: skip
        check = Checker(self._plan_op)
        tables = ragged_table(check, qo_indptr, kv_indptr).with_mask(check, custom_mask, packed_custom_mask)
        self._set_plan(options, tables, phase="prefill", kv_source="ragged", alibi_slopes=alibi_slopes)

    begin_forward = plan

    def run(
        self,
        q: Any,
        k: Any,
        v: Any,
        *args: Any,
        q_scale: Scale = None,
        k_scale: Scale = None,
        v_scale: Scale = None,
        out: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        enable_pdl: bool | None = None,
        sinks: Any = None,
    ) -> Any:
        """Attention of one layer.

        Parameters
        ----------
        q : tensor ``[qo_indptr[-1], num_qo_heads, head_dim_qk]``
        k, v : tensors ``[kv_indptr[-1], num_kv_heads, head_dim]``
            ``[num_kv_heads, kv_indptr[-1], head_dim]`` if the wrapper's layout is "HND".
        *args
            Tensors and scalars of the variant.
        q_scale, k_scale, v_scale, out, lse, return_lse, enable_pdl, sinks
            As `BatchDecodeWithPagedKVCacheWrapper.run`.

        Returns
        -------
        tensor ``[qo_indptr[-1], num_qo_heads, head_dim_vo]``, or with `return_lse` also its log-sum-exp
        """

        return self._run(
            q, (k, v), args=args, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, out=out, lse=lse,
            return_lse=return_lse, sinks=sinks,
        )  # fmt: skip

    forward = run

    def _check_kv(self, check: Checker, kv: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nhd = self._kv_layout == "NHD"
        dims = "kv_rows num_kv_heads" if nhd else "num_kv_heads kv_rows"
        keys = check.tensor("k", kv[0], f"{dims} head_dim_qk")
        values = check.tensor("v", kv[1], f"{dims} head_dim_vo", dtype=keys.dtype)
        return (keys, values) if nhd else (keys.transpose(0, 1), values.transpose(0, 1))

    def run_return_lse(self, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """`run` with ``return_lse=True``."""
        return self.run(q, k, v, *args, **kwargs, return_lse=True)

    forward_return_lse = run_return_lse
