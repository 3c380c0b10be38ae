"""Merging attention states: outputs over disjoint sets of keys become the output over all of them."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.backends.cuda.merge import CudaMergeState, CudaMergeStates
from warploom.attention.backends.reference.merge import ReferenceMergeState, ReferenceMergeStates
from warploom.attention.problems.merge import MergeProblem
from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.tensors import Checker, have_unit_strides
from warploom.core.torch_ops import register_op

__all__ = ["merge_state", "merge_state_in_place", "merge_states"]

MERGE_STATE = Operator("merge_state", family="attention", backends=(CudaMergeState(), ReferenceMergeState()))
MERGE_STATES = Operator("merge_states", family="attention", backends=(CudaMergeStates(), ReferenceMergeStates()))

_VALUE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LSE_BASES = ("log2", "e")


def merge_state(
    v_a: Any,
    s_a: Any,
    v_b: Any,
    s_b: Any,
    *,
    out: Any = None,
    lse: Any = None,
    lse_base: str = "log2",
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge two attention outputs over disjoint sets of keys.

    With log-sum-exps to base 2, `s = log2(2**s_a + 2**s_b)` and `v = 2**(s_a - s) * v_a + 2**(s_b - s) * v_b`. A state
    with log-sum-exp -inf saw no key: it is ignored whatever its values are, and where both are, the result is 0 and
    -inf. NaN in a log-sum-exp makes its row and head NaN.

    Parameters
    ----------
    v_a, v_b : torch.Tensor
        `[seq_len, num_heads, head_dim]`, float16, bfloat16 or float32, both alike.
    s_a, s_b : torch.Tensor
        `[seq_len, num_heads]`, float32, log-sum-exps of the scaled logits.
    out : torch.Tensor, optional
        Buffer for `v`, of the dtype of `v_a` or any other of the three.
    lse : torch.Tensor, optional
        Buffer for `s`, float32.
    lse_base : {"log2", "e"}
        Base of the log-sum-exps given and returned.
    backend : str
        "auto", "cuda" or "reference".

    Returns
    -------
    v : torch.Tensor
        `[seq_len, num_heads, head_dim]`.
    s : torch.Tensor
        `[seq_len, num_heads]`, float32.

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device.

    References
    ----------
    Ye et al., "Cascade Inference: Memory Bandwidth Efficient Shared Prefix Batch Decoding", 2024 (FlashInfer).

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import merge_state
    >>> v_a, v_b = torch.zeros(1, 1, 8), torch.ones(1, 1, 8)
    >>> v, s = merge_state(v_a, torch.tensor([[0.0]]), v_b, torch.tensor([[1.0]]))   # weights 1 : 2
    >>> round(v[0, 0, 0].item(), 4), round(s.item(), 4)
    (0.6667, 1.585)
    """
    check = Checker("merge_state")
    a, s_first = _state(check, "a", v_a, s_a)
    b, s_second = _state(check, "b", v_b, s_b)
    check.require(b.dtype == a.dtype, "v_b", f"of dtype {a.dtype} like `v_a`", b.dtype)
    _check_base(check, lse_base)
    merged, total = _outputs(check, out, lse, a.dtype)
    _merge_state(merged, total, a, s_first, b, s_second, None, lse_base, backend)
    return merged, total


def merge_state_in_place(
    v: Any,
    s: Any,
    v_other: Any,
    s_other: Any,
    mask: Any = None,
    *,
    lse_base: str = "log2",
    backend: str = "auto",
) -> None:
    """Merge another state into `(v, s)`; `merge_state` says how.

    Parameters
    ----------
    v : torch.Tensor
        `[seq_len, num_heads, head_dim]`, float16, bfloat16 or float32; written in place.
    s : torch.Tensor
        `[seq_len, num_heads]`, float32; written in place.
    v_other, s_other : torch.Tensor
        The other state, of the same shapes and dtypes.
    mask : torch.Tensor, optional
        `[seq_len]`, bool: rows to merge. The others stay as they are. In a captured graph this switches requests on and
        off.
    lse_base : {"log2", "e"}
        Base of the log-sum-exps.
    backend : str
        "auto", "cuda" or "reference".

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import merge_state_in_place
    >>> v, s = torch.zeros(2, 1, 8), torch.zeros(2, 1)
    >>> merge_state_in_place(v, s, torch.ones(2, 1, 8), torch.zeros(2, 1), mask=torch.tensor([True, False]))
    >>> v[:, 0, 0].tolist(), s[:, 0].tolist()
    ([0.5, 0.0], [1.0, 0.0])
    """
    check = Checker("merge_state_in_place")
    mine = check.tensor("v", v, "seq_len num_heads head_dim", dtype=_VALUE_DTYPES)
    total = check.tensor("s", s, "seq_len num_heads", dtype=torch.float32)
    other = check.tensor("v_other", v_other, "seq_len num_heads head_dim", dtype=mine.dtype)
    other_total = check.tensor("s_other", s_other, "seq_len num_heads", dtype=torch.float32)
    chosen = check.tensor("mask", mask, "seq_len", dtype=torch.bool, optional=True)
    _check_base(check, lse_base)
    _merge_state(mine, total, None, None, other, other_total, chosen, lse_base, backend)


def merge_states(
    v: Any, s: Any, *, out: Any = None, lse: Any = None, lse_base: str = "log2", backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge any number of attention outputs over disjoint sets of keys; `merge_state` says how.

    Parameters
    ----------
    v : torch.Tensor
        `[seq_len, num_states, num_heads, head_dim]`, float16, bfloat16 or float32.
    s : torch.Tensor
        `[seq_len, num_states, num_heads]`, float32, log-sum-exps. With no states, the result is 0 and -inf.
    out, lse, lse_base, backend
        As in `merge_state`.

    Returns
    -------
    v_merged : torch.Tensor
        `[seq_len, num_heads, head_dim]`.
    s_merged : torch.Tensor
        `[seq_len, num_heads]`, float32.

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import merge_states
    >>> v = torch.tensor([0.0, 1.0, float("nan")]).view(1, 3, 1, 1).expand(1, 3, 1, 8)
    >>> v_merged, s_merged = merge_states(v.contiguous(), torch.tensor([1.0, 1.0, float("-inf")]).view(1, 3, 1))
    >>> v_merged[0, 0, 0].item(), s_merged.item()
    (0.5, 2.0)
    """
    check = Checker("merge_states")
    values = check.tensor("v", v, "seq_len num_states num_heads head_dim", dtype=_VALUE_DTYPES)
    totals = check.tensor("s", s, "seq_len num_states num_heads", dtype=torch.float32)
    _check_base(check, lse_base)
    merged, total = _outputs(check, out, lse, values.dtype)
    _merge_states(merged, total, values, totals, lse_base, backend)
    return merged, total


def _state(check: Checker, suffix: str, v: Any, s: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        check.tensor(f"v_{suffix}", v, "seq_len num_heads head_dim", dtype=_VALUE_DTYPES),
        check.tensor(f"s_{suffix}", s, "seq_len num_heads", dtype=torch.float32),
    )


def _check_base(check: Checker, lse_base: str) -> None:
    check.require(lse_base in _LSE_BASES, "lse_base", "'log2' or 'e'", repr(lse_base))


def _outputs(check: Checker, out: Any, lse: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The caller's buffers or new ones. A buffer for values may have any of the value dtypes."""
    if out is not None:
        dtype = check.tensor("out", out, "seq_len num_heads head_dim", dtype=_VALUE_DTYPES).dtype
    shape = (check["seq_len"], check["num_heads"])
    return check.output("out", out, (*shape, check["head_dim"]), dtype), check.output("lse", lse, shape, torch.float32)


def _describe(out: torch.Tensor, *values: torch.Tensor, lse_base: str) -> MergeProblem:
    return MergeProblem(
        head_dim=out.shape[-1],
        input_dtype=values[0].dtype,
        output_dtype=out.dtype,
        unit_strides=have_unit_strides(out, *values),
        lse_base=lse_base,
        **MergeProblem.where(out),
    )


@register_op(
    "merge_state(Tensor(a!) out, Tensor(b!) lse, Tensor? v_a, Tensor? s_a, Tensor v_b, Tensor s_b, Tensor? mask, "
    "str lse_base, str backend) -> ()"
)
def _merge_state(
    out: torch.Tensor,
    lse: torch.Tensor,
    v_a: torch.Tensor | None,  # None: in place, the first state is (out, lse)
    s_a: torch.Tensor | None,
    v_b: torch.Tensor,
    s_b: torch.Tensor,
    mask: torch.Tensor | None,
    lse_base: str,
    backend: str,
) -> None:
    v_first, s_first = (out, lse) if v_a is None or s_a is None else (v_a, s_a)
    problem = _describe(out, v_first, v_b, lse_base=lse_base)
    chosen = MERGE_STATE.select(problem, backend).backend
    with device_guard(out):
        chosen.run(problem, out, lse, v_first, s_first, v_b, s_b, mask)


@register_op("merge_states(Tensor(a!) out, Tensor(b!) lse, Tensor v, Tensor s, str lse_base, str backend) -> ()")
def _merge_states(
    out: torch.Tensor, lse: torch.Tensor, v: torch.Tensor, s: torch.Tensor, lse_base: str, backend: str
) -> None:
    problem = _describe(out, v, lse_base=lse_base)
    chosen = MERGE_STATES.select(problem, backend).backend
    with device_guard(out):
        chosen.run(problem, out, lse, v, s)
