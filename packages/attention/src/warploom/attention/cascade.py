"""Attention over shared prefixes: each level's keys are read once for all requests that share them, then merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from warploom.attention.decode import BatchDecodeWithPagedKVCacheWrapper
from warploom.attention.merge import merge_state_in_place, merge_states
from warploom.attention.options import FP8_DTYPES
from warploom.attention.plan_explanation import PlanExplanation
from warploom.attention.prefill import BatchPrefillWithPagedKVCacheWrapper
from warploom.attention.single import single_prefill_with_kv_cache_return_lse
from warploom.attention.table_arguments import joined_levels, page_table
from warploom.attention.tables import RequestTables
from warploom.core.errors import ArgumentError, PlanError, UnsupportedError
from warploom.core.tensors import Checker, as_dtype

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


def _output_dtype(options: Mapping[str, Any]) -> Any:
    """What attention writes by default."""
    queries = as_dtype(options.get("q_data_type", "float16"), "plan", "q_data_type")
    return torch.bfloat16 if queries in FP8_DTYPES else queries


class _JointLevels(BatchPrefillWithPagedKVCacheWrapper):
    """Levels of a cascade as the requests of one batch: one launch where the backend takes prefills and decodes together.

    `plan` takes a list of tensors, one for each level, where its base takes a tensor; `run` queries of level after level.
    """

    _phase = "mixed"

    def _tables(self, check: Checker, page_size: int, *arrays: Any) -> RequestTables:
        levels = [
            page_table(Checker(check.op), qo_indptr, page_size, indptr=indptr, indices=indices, last_page_len=last)
            for qo_indptr, indptr, indices, last in zip(*arrays, strict=True)
        ]
        rows = {int(level.qo_indptr[-1]) for level in levels if not level.qo_indptr.is_cuda}
        check.require(len(rows) <= 1, "qo_indptr_arr", "of as many queries in every level", sorted(rows))
        return joined_levels(check.op, levels)


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
        self._num_levels = num_levels
        # They run one after the other on one stream, so they can share the workspace.
        self._together = _JointLevels(float_workspace_buffer, kv_layout, backend=backend, device=device)
        self._last = BatchPrefillWithPagedKVCacheWrapper(
            float_workspace_buffer, kv_layout, backend=backend, device=device
        )
        self._joint = 0  # levels that run together, the first ones
        self._dtype_o = torch.float32

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
            if len(array) != self._num_levels:
                raise ArgumentError.of(
                    op, name, f"a list of {self._num_levels} tensors, one for each level", len(array)
                )
        options |= {
            "num_qo_heads": num_qo_heads, "num_kv_heads": num_kv_heads, "head_dim_qk": head_dim, "page_size": page_size,
        }  # fmt: skip
        masks = {name: options.pop(name, None) for name in ("custom_mask", "packed_custom_mask")}
        stands_out = causal or any(mask is not None for mask in masks.values())  # the last level
        self._joint = self._num_levels - stands_out
        self._dtype_o = as_dtype(options.pop("o_data_type", None) or _output_dtype(options), op, "o_data_type")
        options["o_data_type"] = torch.float32 if self._num_levels > 1 else self._dtype_o  # parts are merged
        if self._joint:
            first, second, third, fourth = (list(array)[: self._joint] for array in arrays.values())
            self._together.plan(first, second, third, fourth, **options)
        if stands_out:
            first, second, third, fourth = (array[-1] for array in arrays.values())
            self._last.plan(first, second, third, fourth, causal=causal, **masks, **options)

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
        options = self._first.planned().options
        if self._num_levels == 1:
            return self._first.run(q, paged_kv_cache, return_lse=return_lse, **call)
        check = Checker(f"{type(self).__name__}.run")
        q = check.tensor("q", q, "rows num_qo_heads head_dim_qk", dtype=options.dtype_q)
        rows, heads, joint = q.shape[0], q.shape[1], self._joint
        shape = rows, heads, options.head_dim_vo
        out = check.output("out", call.pop("out", None), shape, self._dtype_o)
        lse = check.output("lse", call.pop("lse", None), shape[:2], torch.float32)
        values = torch.empty(self._num_levels, *shape, dtype=torch.float32, device=q.device)
        sums = torch.empty(self._num_levels, *shape[:2], dtype=torch.float32, device=q.device)
        if joint:
            together = {"out": values[:joint].flatten(0, 1), "lse": sums[:joint].flatten(0, 1), **call}
            self._together.run_return_lse(q if joint == 1 else q.repeat(joint, 1, 1), paged_kv_cache, **together)
        if joint < self._num_levels:
            self._last.run_return_lse(q, paged_kv_cache, out=values[joint], lse=sums[joint], **call)
        merged = merge_states(values.transpose(0, 1), sums.transpose(0, 1), out=out, lse=lse, lse_base=options.lse_base)
        return merged if return_lse else merged[0]

    forward = run

    @property
    def _first(self) -> BatchPrefillWithPagedKVCacheWrapper:
        return self._together if self._joint else self._last

    def explain(self) -> PlanExplanation:
        """The backend table and the work of the levels that run together: of all of them, unless the last is causal."""
        return self._first.explain()


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
