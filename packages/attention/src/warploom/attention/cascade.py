"""Attention over shared prefixes: each level's keys are read once for all requests that share them, then merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from warploom.attention.decode import BatchDecodeWithPagedKVCacheWrapper
from warploom.attention.merge import merge_state_in_place
from warploom.attention.prefill import BatchPrefillWithPagedKVCacheWrapper
from warploom.attention.single import single_prefill_with_kv_cache_return_lse
from warploom.core.errors import ArgumentError, PlanError, UnsupportedError

__all__ = [
    "BatchDecodeWithSharedPrefixPagedKVCacheWrapper",
    "BatchPrefillWithSharedPrefixPagedKVCacheWrapper",
    "MultiLevelCascadeAttentionWrapper",
]


def refuse_positions(op: str, options: Mapping[str, Any]) -> None:
    """Raise for options that need a key's place among all keys of its request: a level knows only its own."""
    defaults = {"pos_encoding_mode": "NONE", "window_left": -1, "alibi_slopes": None, "variant": None, "sinks": None}
    for name, default in defaults.items():
        given = options.get(name)
        if given is not None and not (isinstance(given, (str, int)) and given == default):
            raise UnsupportedError(
                f"{op}: `{name}` concerns all keys of a request, which a cascade holds in several parts; "
                "use BatchAttention over each request's whole page table"
            )


class MultiLevelCascadeAttentionWrapper:
    """Attention whose keys form a tree: level 0 is shared by all requests of a group, the last level is each request's own.

    Parameters
    ----------
    num_levels : int
        Levels of the tree.
    float_workspace_buffer : uint8 tensor, optional
        Scratch memory; None allocates what a plan needs.
    kv_layout : {"NHD", "HND"}
        Layout of the pages.
    backend : str
        Backend of every level.
    device : torch.device, optional
        Where the queries will be.

    References
    ----------
    Ye et al., "Cascade Inference: Memory Bandwidth Efficient Shared Prefix Batch Decoding", 2024.

    Examples
    --------
    Three requests share a prefix of two pages; each has a page of its own:

    >>> import torch
    >>> from warploom.attention import MultiLevelCascadeAttentionWrapper
    >>> cache, page = torch.randn(8, 2, 16, 2, 64), torch.tensor
    >>> cascade = MultiLevelCascadeAttentionWrapper(2)
    >>> cascade.plan([page([0, 3]), page([0, 1, 2, 3])], [page([0, 2]), page([0, 1, 2, 3])],
    ...              [page([4, 5]), page([0, 1, 2])], [page([16]), page([3, 1, 9])], 4, 2, 64, 16,
    ...              q_data_type="float32")
    >>> cascade.run(torch.randn(3, 4, 64), cache).shape
    torch.Size([3, 4, 64])
    """

    def __init__(
        self,
        num_levels: int,
        float_workspace_buffer: Any = None,
        kv_layout: str = "NHD",
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(num_levels, int) or num_levels < 1:
            raise ArgumentError.of(type(self).__name__, "num_levels", "1 or more", num_levels)
        # Levels run one after the other on one stream, so they can share the workspace.
        self._levels = [
            BatchPrefillWithPagedKVCacheWrapper(float_workspace_buffer, kv_layout, backend=backend, device=device)
            for _ in range(num_levels)
        ]

    def plan(
        self,
        qo_indptr_arr: Sequence[Any],
        paged_kv_indptr_arr: Sequence[Any],
        paged_kv_indices_arr: Sequence[Any],
        paged_kv_last_page_len_arr: Sequence[Any],
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        causal: bool = False,
        **options: Any,
    ) -> None:
        """Fix the tables of every level.

        Parameters
        ----------
        qo_indptr_arr : sequence of int tensors ``[groups + 1]``
            For each level, where the queries of each group start; a group shares the pages of the level.
        paged_kv_indptr_arr, paged_kv_indices_arr, paged_kv_last_page_len_arr : sequences of int tensors
            For each level, the page table of its groups.
        num_qo_heads, num_kv_heads, head_dim, page_size : int
            Sizes.
        causal : bool
            Of the last level; the levels before it lie wholly in the past.
        **options
            As `BatchPrefillWithPagedKVCacheWrapper.plan`; custom masks are of the last level.

        Raises
        ------
        ArgumentError
            Not one table for each level, or a table that does not fit.
        UnsupportedError
            A window, positions applied on the fly or a variant: a level does not know a key's place in its request.
        """
        op = f"{type(self).__name__}.plan"
        refuse_positions(op, options)
        arrays = {
            "qo_indptr_arr": qo_indptr_arr,
            "paged_kv_indptr_arr": paged_kv_indptr_arr,
            "paged_kv_indices_arr": paged_kv_indices_arr,
            "paged_kv_last_page_len_arr": paged_kv_last_page_len_arr,
        }
        for name, array in arrays.items():
            if len(array) != len(self._levels):
                raise ArgumentError.of(
                    op, name, f"a list of {len(self._levels)} tensors, one for each level", len(array)
                )
        for number, (qo_indptr, indptr, indices, last_page_len) in enumerate(zip(*arrays.values(), strict=True)):
            mine = {**options, "causal": causal}
            if number < len(self._levels) - 1:
                mine |= {"causal": False, "custom_mask": None, "packed_custom_mask": None}
            self._levels[number].plan(
                qo_indptr, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, **mine
            )

    begin_forward = plan

    def run(self, q: Any, paged_kv_cache: Any, **call: Any) -> Any:
        """Attention of one layer over all levels.

        Parameters
        ----------
        q : tensor ``[rows, num_qo_heads, head_dim]``
            Queries, those of one request together.
        paged_kv_cache : tensor or pair of tensors
            As `BatchDecodeWithPagedKVCacheWrapper.run`; one cache for all levels.
        **call
            As `BatchPrefillWithPagedKVCacheWrapper.run`; with `return_lse` also returns the log-sum-exp.

        Returns
        -------
        tensor ``[rows, num_qo_heads, head_dim]``
        """
        refuse_positions(f"{type(self).__name__}.run", call)
        return_lse = call.pop("return_lse", False)
        first, *others = self._levels
        out, lse = first.run_return_lse(q, paged_kv_cache, **call)
        for key in ("out", "lse"):
            call.pop(key, None)
        base = first.planned().options.lse_base
        for level in others:
            merge_state_in_place(out, lse, *level.run_return_lse(q, paged_kv_cache, **call), lse_base=base)
        return (out, lse) if return_lse else out

    forward = run


class _SharedPrefix:
    """One prefix in contiguous memory for the whole batch, and each request's own pages."""

    def __init__(self, unique: Any) -> None:
        self._unique = unique

    def _begin(self, *tables_and_sizes: Any, **options: Any) -> None:
        refuse_positions(f"{type(self).__name__}.begin_forward", options)
        self._unique.plan(*tables_and_sizes, **options)

    def _forward(
        self,
        q: Any,
        k_shared: Any,
        v_shared: Any,
        unique_kv_cache: Any,
        *,
        out: Any = None,
        lse: Any = None,
        return_lse: bool = False,
        **call: Any,
    ) -> Any:
        if not self._unique.is_planned:
            raise PlanError(f"{type(self).__name__}: call begin_forward(...) before forward(...)")
        refuse_positions(f"{type(self).__name__}.forward", call)
        plan = self._unique.planned()
        options = plan.options
        scales = [call.get(name) for name in ("q_scale", "k_scale", "v_scale")]
        out, lse = single_prefill_with_kv_cache_return_lse(
            q, k_shared, v_shared, *scales, options.dtype_o, kv_layout=options.kv_layout, sm_scale=options.sm_scale,
            logits_soft_cap=options.logits_soft_cap, lse_base=options.lse_base, backend=plan.backend, out=out, lse=lse,
        )  # fmt: skip
        own = self._unique.run_return_lse(q, unique_kv_cache, **call)
        merge_state_in_place(out, lse, *own, lse_base=options.lse_base)
        return (out, lse) if return_lse else out


class BatchDecodeWithSharedPrefixPagedKVCacheWrapper(_SharedPrefix):
    """Decode where all requests share one prefix.

    Parameters
    ----------
    float_workspace_buffer : uint8 tensor, optional
        Scratch memory; None allocates what a plan needs.
    kv_layout : {"NHD", "HND"}
        Layout of the pages and of the prefix.
    backend, device
        As `BatchDecodeWithPagedKVCacheWrapper`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import BatchDecodeWithSharedPrefixPagedKVCacheWrapper
    >>> decode = BatchDecodeWithSharedPrefixPagedKVCacheWrapper()
    >>> decode.begin_forward(torch.tensor([0, 1, 2]), torch.tensor([3, 0]), torch.tensor([7, 2]), 4, 2, 64, 16,
    ...                      data_type="float32")
    >>> k, v, own = torch.randn(100, 2, 64), torch.randn(100, 2, 64), torch.randn(4, 2, 16, 2, 64)
    >>> decode.forward(torch.randn(2, 4, 64), k, v, own).shape
    torch.Size([2, 4, 64])
    """

    def __init__(
        self,
        float_workspace_buffer: Any = None,
        kv_layout: str = "NHD",
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            BatchDecodeWithPagedKVCacheWrapper(float_workspace_buffer, kv_layout, backend=backend, device=device)
        )

    def begin_forward(
        self,
        unique_kv_indptr: Any,
        unique_kv_indices: Any,
        unique_kv_last_page_len: Any,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        data_type: torch.dtype | str = "float16",
        **options: Any,
    ) -> None:
        """Fix the tables of the requests' own pages; arguments as `BatchDecodeWithPagedKVCacheWrapper.plan`."""
        self._begin(
            unique_kv_indptr, unique_kv_indices, unique_kv_last_page_len, num_qo_heads, num_kv_heads, head_dim,
            page_size, data_type=data_type, **options,
        )  # fmt: skip

    plan = begin_forward

    def forward(self, q: Any, k_shared: Any, v_shared: Any, unique_kv_cache: Any, **call: Any) -> Any:
        """Attention of one layer.

        Parameters
        ----------
        q : tensor ``[batch, num_qo_heads, head_dim]``
        k_shared, v_shared : tensors ``[prefix, num_kv_heads, head_dim]``
            The prefix, in the wrapper's layout.
        unique_kv_cache : tensor or pair of tensors
            Pages of the requests' own keys and values.
        **call
            `q_scale`, `k_scale`, `v_scale` (of prefix and pages), `out`, `lse` and `return_lse`, as
            `BatchDecodeWithPagedKVCacheWrapper.run`.

        Returns
        -------
        tensor ``[batch, num_qo_heads, head_dim]``
        """
        return self._forward(q, k_shared, v_shared, unique_kv_cache, **call)

    run = forward


class BatchPrefillWithSharedPrefixPagedKVCacheWrapper(_SharedPrefix):
    """Prefill or append where all requests share one prefix.

    Parameters
    ----------
    float_workspace_buffer : uint8 tensor, optional
        Scratch memory; None allocates what a plan needs.
    kv_layout : {"NHD", "HND"}
        Layout of the pages and of the prefix.
    backend, device
        As `BatchPrefillWithPagedKVCacheWrapper`.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import BatchPrefillWithSharedPrefixPagedKVCacheWrapper
    >>> prefill = BatchPrefillWithSharedPrefixPagedKVCacheWrapper()
    >>> prefill.begin_forward(torch.tensor([0, 2, 5]), torch.tensor([0, 1, 2]), torch.tensor([3, 0]),
    ...                       torch.tensor([7, 3]), 4, 2, 64, 16, causal=True, q_data_type="float32")
    >>> k, v, own = torch.randn(100, 2, 64), torch.randn(100, 2, 64), torch.randn(4, 2, 16, 2, 64)
    >>> prefill.forward(torch.randn(5, 4, 64), k, v, own).shape
    torch.Size([5, 4, 64])
    """

    def __init__(
        self,
        float_workspace_buffer: Any = None,
        kv_layout: str = "NHD",
        *,
        backend: str = "auto",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(
            BatchPrefillWithPagedKVCacheWrapper(float_workspace_buffer, kv_layout, backend=backend, device=device)
        )

    def begin_forward(
        self,
        qo_indptr: Any,
        paged_kv_indptr: Any,
        paged_kv_indices: Any,
        paged_kv_last_page_len: Any,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        **options: Any,
    ) -> None:
        """Fix the tables of the requests' own pages; arguments as `BatchPrefillWithPagedKVCacheWrapper.plan`."""
        self._begin(
            qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads, head_dim,
            page_size, **options,
        )  # fmt: skip

    plan = begin_forward

    def forward(self, q: Any, k_shared: Any, v_shared: Any, unique_kv_cache: Any, **call: Any) -> Any:
        """Attention of one layer; `causal` is the plan's and concerns the requests' own keys.

        Parameters
        ----------
        q : tensor ``[rows, num_qo_heads, head_dim]``
        k_shared, v_shared, unique_kv_cache, **call
            As `BatchDecodeWithSharedPrefixPagedKVCacheWrapper.forward`.

        Returns
        -------
        tensor ``[rows, num_qo_heads, head_dim]``
        """
        return self._forward(q, k_shared, v_shared, unique_kv_cache, **call)

    run = forward
