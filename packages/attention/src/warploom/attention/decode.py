"""Batched decode over a paged cache: the same small number of new tokens for every request."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.calls import Scale
from warploom.attention.options import AttentionOptions
from warploom.attention.table_arguments import page_table
from warploom.attention.variants.base import AttentionVariant
from warploom.attention.wrapper import PlannedAttention
from warploom.core.tensors import Checker

__all__ = [
    "BatchDecodeWithPagedKVCacheWrapper",
    "CUDAGraphBatchDecodeWithPagedKVCacheWrapper",
    "fast_decode_plan",
]


class BatchDecodeWithPagedKVCacheWrapper(PlannedAttention):
    """Decode attention for a batch of requests over a paged key-value cache.

    Parameters
    ----------
    float_workspace_buffer : uint8 tensor, optional
        Scratch memory, at least `workspace_size` bytes; None allocates what a plan needs.
    kv_layout : {"NHD", "HND"}
        Layout of the pages.
    use_cuda_graph : bool
        Plans go into fixed tensors, so that `run` can be captured and replayed after the next `plan`.
    use_tensor_cores : bool
        Accepted for compatibility; backends decide.
    paged_kv_indptr_buffer, paged_kv_indices_buffer, paged_kv_last_page_len_buffer : int32 tensors, optional
        With `use_cuda_graph`: the caller's buffers ``[max_batch + 1]``, ``[max_pages]`` and ``[max_batch]``, which fix
        the largest batch and number of pages. Those not given take the sizes of the first plan.
    backend : str
        "auto", "sdpa", "cutlass" or "reference".
    jit_args : AttentionVariant, optional
        Your own variant; `run` takes its tensors and scalars after the cache.
    device : torch.device, optional
        Where the queries will be; by default that of the workspace or of the plan's tensors.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import BatchDecodeWithPagedKVCacheWrapper
    >>> cache = torch.randn(8, 2, 16, 4, 64)                          # 8 pages of 16 tokens, 4 heads
    >>> decode = BatchDecodeWithPagedKVCacheWrapper()
    >>> decode.plan(torch.tensor([0, 3, 4]), torch.tensor([5, 0, 2, 7]), torch.tensor([4, 16]), 8, 4, 64, 16,
    ...             q_data_type="float32")
    >>> decode.run(torch.randn(2, 8, 64), cache).shape
    torch.Size([2, 8, 64])
    """

    def __init__(
        self,
        float_workspace_buffer: Any = None,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: torch.Tensor | None = None,
        paged_kv_indices_buffer: torch.Tensor | None = None,
        paged_kv_last_page_len_buffer: torch.Tensor | None = None,
        backend: str = "auto",
        jit_args: AttentionVariant | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        buffers = {"kv_indptr": paged_kv_indptr_buffer, "kv_indices": paged_kv_indices_buffer}
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
        head_dim: int,
        page_size: int,
        q_data_type: Any = "float16",
        **choices: Any,
    ) -> int:
        """Bytes of workspace that any plan with these sizes needs, whatever the batch and lengths."""
        options = AttentionOptions(
            num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim_qk=head_dim, page_size=page_size,
            kv_layout=self._kv_layout, dtype_q=q_data_type, **choices,
        )  # fmt: skip
        return self._workspace_bytes(options, "decode", "paged")

    def plan(
        self,
        indptr: Any,
        indices: Any,
        last_page_len: Any,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        pos_encoding_mode: str = "NONE",
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype | str | None = "float16",
        kv_data_type: torch.dtype | str | None = None,
        o_data_type: torch.dtype | str | None = None,
        data_type: torch.dtype | str | None = None,
        sm_scale: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        non_blocking: bool = True,
        block_tables: Any = None,
        seq_lens: Any = None,
        fixed_split_size: int | None = None,
        disable_split_kv: bool = False,
        q_len_per_req: int = 1,
        *,
        head_dim_vo: int | None = None,
        causal: bool = True,
        alibi_slopes: Any = None,
        lse_base: str = "log2",
        deterministic: bool = False,
        variant: AttentionVariant | None = None,
    ) -> None:
        """Fix the lengths, tables and options of a decoding step; every layer's `run` reuses them.

        Parameters
        ----------
        indptr, indices, last_page_len : int32 or int64 tensors
            ``[batch + 1]`` offsets into `indices`, ``[num_pages]`` page numbers, ``[batch]`` entries of each last page
            (1 to `page_size`); a request without pages is empty. On the CPU or the GPU.
        num_qo_heads, num_kv_heads, head_dim, page_size : int
            Sizes; `head_dim_vo` if values have another one.
        pos_encoding_mode, window_left, logits_soft_cap, sm_scale, rope_scale, rope_theta, alibi_slopes, lse_base
            As `single_decode_with_kv_cache`.
        q_data_type, kv_data_type, o_data_type : torch.dtype or str
            Dtypes; the cache's and the output's default to that of the queries. `data_type` sets all that are not
            given.
        non_blocking : bool
            Accepted for compatibility; copies never block.
        block_tables, seq_lens : int tensors, optional
            ``[batch, max_pages]`` and ``[batch]``: used in place of `indptr`, `indices` and `last_page_len`.
        fixed_split_size, disable_split_kv
            Accepted; backends that split long requests keep to them.
        q_len_per_req : int
            New tokens of each request, which are its last; they see one another causally unless `causal` is False.
        deterministic : bool
            A request's result must not depend on the batch around it.
        variant : AttentionVariant, optional
            In place of the wrapper's `jit_args`.

        Raises
        ------
        ArgumentError, UnsupportedError
            What does not fit, or the table of backends.
        PlanError
            In graph mode: more than the captured maximum.
        """
        if data_type is not None:
            q_data_type, kv_data_type = data_type, kv_data_type or data_type
        options = self._options(
            variant, num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim_qk=head_dim,
            head_dim_vo=head_dim_vo, page_size=page_size, dtype_q=q_data_type or "float16", dtype_kv=kv_data_type,
            dtype_o=o_data_type, causal=causal and q_len_per_req > 1, sm_scale=sm_scale, window_left=window_left,
            logits_soft_cap=logits_soft_cap, pos_encoding_mode=pos_encoding_mode, rope_scale=rope_scale,
            rope_theta=rope_theta, lse_base=lse_base, deterministic=deterministic or fixed_split_size is not None,
        )  # fmt: skip
        check = Checker(self._plan_op)
        check.require(page_size >= 1, "page_size", "1 or more", page_size)
        check.require(q_len_per_req >= 1, "q_len_per_req", "1 or more", q_len_per_req)
        qo_len = int(q_len_per_req)
        if block_tables is not None and seq_lens is not None:
            tables = page_table(check, qo_len, page_size, block_table=block_tables, kv_lens=seq_lens)
        else:
            tables = page_table(check, qo_len, page_size, indptr=indptr, indices=indices, last_page_len=last_page_len)
        self._set_plan(options, tables, phase="decode", kv_source="paged", alibi_slopes=alibi_slopes)

    begin_forward = plan

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
        q_len_per_req: int | None = None,
    ) -> Any:
        """Attention of one layer.

        Parameters
        ----------
        q : tensor ``[batch * q_len_per_req, num_qo_heads, head_dim]``
            New tokens, request after request.
        paged_kv_cache : tensor or pair of tensors
            ``[pages, 2, page_size, kv_heads, dim]`` or ``[pages, 2, kv_heads, page_size, dim]`` by `kv_layout`, or
            ``(k, v)`` of 4-D ones. Holds the new tokens already.
        *args
            Tensors and scalars of the variant.
        q_scale, k_scale, v_scale, out, lse, return_lse, sinks
            As `single_decode_with_kv_cache`.
        enable_pdl : bool, optional
            Accepted; backends that chain launches keep to it.
        window_left : int, optional
            In place of the plan's.
        q_len_per_req : int, optional
            Must be the plan's if given.

        Returns
        -------
        tensor ``[batch * q_len_per_req, num_qo_heads, head_dim]``, or with `return_lse` also its log-sum-exp
        """
        if q_len_per_req is not None:
            planned = self.planned().tables.max_qo_len
            Checker(self._run_op).require(
                q_len_per_req == planned, "q_len_per_req", f"{planned} as planned", q_len_per_req
            )
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


class CUDAGraphBatchDecodeWithPagedKVCacheWrapper(BatchDecodeWithPagedKVCacheWrapper):
    """`BatchDecodeWithPagedKVCacheWrapper` in graph mode, with the caller's buffers for the tables.

    Parameters
    ----------
    workspace_buffer : uint8 tensor or None
        Scratch memory.
    indptr_buffer, indices_buffer, last_page_len_buffer : int32 tensors
        ``[max_batch + 1]``, ``[max_pages]`` and ``[max_batch]``: the captured maximum.
    kv_layout, use_tensor_cores, backend, jit_args
        As `BatchDecodeWithPagedKVCacheWrapper`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import CUDAGraphBatchDecodeWithPagedKVCacheWrapper
    >>> buffers = [torch.zeros(n, dtype=torch.int32) for n in (5, 32, 4)]
    >>> CUDAGraphBatchDecodeWithPagedKVCacheWrapper(None, *buffers).is_cuda_graph_enabled
    True
    """

    def __init__(
        self,
        workspace_buffer: Any,
        indptr_buffer: torch.Tensor,
        indices_buffer: torch.Tensor,
        last_page_len_buffer: torch.Tensor,
        kv_layout: str = "NHD",
        use_tensor_cores: bool = False,
        backend: str = "auto",
        jit_args: AttentionVariant | None = None,
    ) -> None:
        super().__init__(
            workspace_buffer, kv_layout, True, use_tensor_cores, indptr_buffer, indices_buffer, last_page_len_buffer,
            backend, jit_args, device=indptr_buffer.device,
        )  # fmt: skip


def fast_decode_plan(wrapper: BatchDecodeWithPagedKVCacheWrapper, *args: Any, **kwargs: Any) -> None:
    """`wrapper.plan(...)`, which needs no faster form: it copies nothing that a backend does not ask for.

    Parameters
    ----------
    wrapper : BatchDecodeWithPagedKVCacheWrapper
        What to plan.
    *args, **kwargs
        As its `plan`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import BatchDecodeWithPagedKVCacheWrapper, fast_decode_plan
    >>> fast_decode_plan(BatchDecodeWithPagedKVCacheWrapper(), torch.tensor([0, 1]), torch.tensor([0]),
    ...                  torch.tensor([3]), 4, 4, 64, 16)
    """
    wrapper.plan(*args, **kwargs)
