"""`BatchAttention`: prefill chunks, appends and decodes of one serving step in one call."""

from __future__ import annotations

import numbers
from typing import Any, overload

import torch

from warploom.attention.calls import Scale
from warploom.attention.options import AttentionOptions
from warploom.attention.table_arguments import page_table
from warploom.attention.tables import RequestTables
from warploom.attention.variants.base import AttentionVariant
from warploom.attention.wrapper import PlannedAttention
from warploom.core.errors import ArgumentError
from warploom.core.tensors import Checker, as_tensor

__all__ = ["BatchAttention"]

_CHOICES = frozenset(AttentionOptions.__dataclass_fields__)


class BatchAttention(PlannedAttention):
    """Attention over a paged cache for any mix of requests: one new token, a few, or a whole prompt each.

    Parameters
    ----------
    kv_layout : {"NHD", "HND"}
        Layout of the pages.
    device : torch.device, optional
        Where the queries will be; by default where the plan's tensors are.
    workspace : uint8 tensor, optional
        Scratch memory; None allocates what a plan needs.
    use_cuda_graph : bool
        Plans go into fixed tensors with the sizes of the first plan.
    backend : str
        "auto", "sdpa", "cutlass" or "reference".

    Examples
    --------
    A request with three new tokens of five, and one with one new token of twenty:

    >>> import torch
    >>> from warploom.attention import BatchAttention
    >>> cache = torch.randn(8, 2, 16, 2, 64)                           # 8 pages of 16 tokens, 2 heads
    >>> attention = BatchAttention()
    >>> attention.plan(torch.tensor([0, 3, 4]), torch.tensor([5, 20]), torch.tensor([[6, 0], [1, 4]]), 4, 2, 64, 64,
    ...                dtype_q=torch.float32, page_size=16, causal=True)
    >>> out, lse = attention.run(torch.randn(4, 4, 64), cache)
    >>> out.shape, lse.shape
    (torch.Size([4, 4, 64]), torch.Size([4, 4]))
    """

    def __init__(
        self,
        kv_layout: str = "NHD",
        device: torch.device | str | None = None,
        *,
        workspace: Any = None,
        use_cuda_graph: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            workspace, kv_layout, backend=backend, device=device, graph_buffers={} if use_cuda_graph else None
        )

    def workspace_size(
        self,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        dtype_q: Any = "bfloat16",
        **choices: Any,
    ) -> int:
        """Bytes of workspace that any plan with these sizes needs, whatever the batch and lengths."""
        options = AttentionOptions(
            num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim_qk=head_dim, page_size=page_size,
            kv_layout=self._kv_layout, dtype_q=dtype_q, **choices,
        )  # fmt: skip
        return self._workspace_bytes(options, "mixed", "paged")

    @overload
    def plan(
        self, qo_offsets: Any, kv_lens: Any, kv_block_table: Any, num_qo_heads: int, num_kv_heads: int, head_dim_qk:
        int, head_dim_vo: int | None = None, *, dtype_q: Any = torch.bfloat16, dtype_kv: Any = None, dtype_o: Any = None,
        page_size: int, **variant_kwargs: Any,
    ) -> None: ...  # fmt: skip
    @overload
    def plan(
        self, qo_indptr: Any, kv_indptr: Any, kv_indices: Any, kv_len_arr: Any, num_qo_heads: int, num_kv_heads: int,
        head_dim_qk: int, head_dim_vo: int, page_size: int, causal: bool = False, sm_scale: float | None = None,
        logits_soft_cap: float | None = None, q_data_type: Any = torch.bfloat16, kv_data_type: Any = None,
        **variant_kwargs: Any,
    ) -> None: ...  # fmt: skip
    def plan(self, *args: Any, **kwargs: Any) -> None:
        """Fix the lengths, tables and options of a step; every layer's `run` reuses them.

        Two spellings: offsets, lengths and a block table; or, as in FlashInfer, offsets, page offsets, page indices and
        lengths. The fourth argument tells them apart.

        Parameters
        ----------
        qo_offsets (qo_indptr) : int32 or int64 tensor ``[batch + 1]``
            Where each request's new tokens start in the queries and the output.
        kv_lens (kv_len_arr) : int tensor ``[batch]``
            Keys and values of each request, the new tokens included.
        kv_block_table : int tensor
            Page numbers: padded ``[batch, max_pages]``, or packed ``[total_pages]``.
        kv_indptr, kv_indices : int tensors ``[batch + 1]``, ``[total_pages]``
            The same in FlashInfer's spelling.
        num_qo_heads, num_kv_heads, head_dim_qk, head_dim_vo, page_size : int
            Sizes.
        dtype_q (q_data_type), dtype_kv (kv_data_type), dtype_o : torch.dtype or str
            Dtypes, bfloat16 by default; the cache's and the output's default to that of the queries.
        **variant_kwargs
            causal, sm_scale, window_left, logits_soft_cap, custom_mask, packed_custom_mask, pos_encoding_mode,
            rope_scale, rope_theta, alibi_slopes, sinks, lse_base, deterministic, and `variant` for your own: as in
            `BatchPrefillWithPagedKVCacheWrapper.plan`.

        Raises
        ------
        ArgumentError, UnsupportedError, PlanError
            What does not fit, the table of backends, or more than the captured maximum.
        """
        by_indices = (
            "kv_len_arr" in kwargs
            or "kv_indices" in kwargs
            or (len(args) > 3 and not isinstance(args[3], numbers.Integral))
        )
        (self._plan_indices if by_indices else self._plan_table)(*args, **kwargs)

    def _plan_table(
        self,
        qo_offsets: Any,
        kv_lens: Any,
        kv_block_table: Any,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int | None = None,
        *,
        dtype_q: Any = torch.bfloat16,
        dtype_kv: Any = None,
        dtype_o: Any = None,
        page_size: int | None = None,
        **variant_kwargs: Any,
    ) -> None:
        check = Checker(self._plan_op)
        if not isinstance(page_size, int) or page_size < 1:
            raise ArgumentError.of(check.op, "page_size", "a positive integer", page_size)
        table = as_tensor(kv_block_table, check.op, "kv_block_table")
        check.require(
            table.dim() in (1, 2), "kv_block_table", "[batch, max_pages] or [total_pages]", f"{table.dim()}-D"
        )
        packed: dict[str, Any] = {"indices": table} if table.dim() == 1 else {"block_table": table}
        tables = page_table(check, qo_offsets, page_size, kv_lens=kv_lens, **packed)
        self._plan_step(
            check, tables, num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim_qk=head_dim_qk,
            head_dim_vo=head_dim_vo, page_size=page_size, dtype_q=dtype_q, dtype_kv=dtype_kv, dtype_o=dtype_o,
            **variant_kwargs,
        )  # fmt: skip

    def _plan_indices(
        self,
        qo_indptr: Any,
        kv_indptr: Any,
        kv_indices: Any,
        kv_len_arr: Any,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int | None,
        page_size: int,
        causal: bool = False,
        sm_scale: float | None = None,
        logits_soft_cap: float | None = None,
        q_data_type: Any = torch.bfloat16,
        kv_data_type: Any = None,
        **variant_kwargs: Any,
    ) -> None:
        check = Checker(self._plan_op)
        check.require(isinstance(page_size, int) and page_size >= 1, "page_size", "a positive integer", page_size)
        tables = page_table(check, qo_indptr, page_size, indptr=kv_indptr, indices=kv_indices, kv_lens=kv_len_arr)
        self._plan_step(
            check, tables, num_qo_heads=num_qo_heads, num_kv_heads=num_kv_heads, head_dim_qk=head_dim_qk,
            head_dim_vo=head_dim_vo, page_size=page_size, dtype_q=q_data_type, dtype_kv=kv_data_type, causal=causal,
            sm_scale=sm_scale, logits_soft_cap=logits_soft_cap, **variant_kwargs,
        )  # fmt: skip

    def _plan_step(
        self,
        check: Checker,
        tables: RequestTables,
        *,
        custom_mask: Any = None,
        packed_custom_mask: Any = None,
        alibi_slopes: Any = None,
        sinks: Any = None,
        variant: AttentionVariant | None = None,
        **choices: Any,
    ) -> None:
        if not _CHOICES.issuperset(choices):
            unknown = ", ".join(sorted(choices.keys() - _CHOICES))
            raise ArgumentError.of(check.op, "plan", "called with options of `BatchAttention.plan`", unknown)
        options = self._options(variant, **choices)
        tables = tables.with_mask(check, custom_mask, packed_custom_mask)
        if sinks is not None:
            sinks, heads = check.tensor("sinks", sinks, "_", device="any"), options.num_qo_heads
            check.require(sinks.shape[0] == heads, "sinks", f"of {heads} elements", sinks.shape[0])
        self._set_plan(options, tables, phase="mixed", kv_source="paged", alibi_slopes=alibi_slopes, sinks=sinks)

    def run(
        self,
        q: Any,
        kv_cache: Any,
        out: Any = None,
        lse: Any = None,
        k_scale: Scale = None,
        v_scale: Scale = None,
        logits_soft_cap: float = 0.0,
        *,
        q_scale: Scale = None,
        sinks: Any = None,
        variant_args: tuple[Any, ...] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of one layer.

        Parameters
        ----------
        q : tensor ``[qo_offsets[-1], num_qo_heads, head_dim_qk]``
            New tokens, request after request.
        kv_cache : tensor or pair of tensors
            ``[pages, 2, page_size, kv_heads, dim]`` or ``[pages, 2, kv_heads, page_size, dim]`` by `kv_layout`, or
            ``(k, v)`` of 4-D ones. Holds the new tokens already.
        out, lse : tensor, optional
            Buffers for the results.
        q_scale, k_scale, v_scale : float or tensor, optional
            Scales of quantised inputs, one for all or one per head.
        logits_soft_cap : float
            In place of the plan's, unless 0.
        sinks : tensor ``[num_qo_heads]``, optional
            In place of the plan's.
        variant_args : tuple
            Tensors and scalars of the plan's variant.

        Returns
        -------
        out : tensor ``[qo_offsets[-1], num_qo_heads, head_dim_vo]``
        lse : tensor ``[qo_offsets[-1], num_qo_heads]``
            float32; a row that sees no key gives 0 and -inf.
        """
        return self._run(
            q, kv_cache, args=variant_args, q_scale=q_scale, k_scale=k_scale, v_scale=v_scale, out=out, lse=lse,
            return_lse=True, sinks=sinks, logits_soft_cap=logits_soft_cap or None,
        )  # fmt: skip
