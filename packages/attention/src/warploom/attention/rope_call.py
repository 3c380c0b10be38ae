"""What the ten spellings of `rope.py` share: check, describe, select, run."""

from __future__ import annotations

from typing import Any, Final

import torch

from warploom.attention.backends.cuda.rope import CudaCosSinCache, CudaRope
from warploom.attention.backends.reference.rope import ReferenceCosSinCache, ReferenceRope
from warploom.attention.problems.rope import RopeProblem, RopeScaling
from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.errors import ArgumentError
from warploom.core.settings import settings
from warploom.core.tensors import Checker, have_unit_strides
from warploom.core.torch_ops import register_op

ROPE = Operator("apply_rope", family="attention", backends=(CudaRope(), ReferenceRope()))
COS_SIN_CACHE = Operator(
    "apply_rope_with_cos_sin_cache", family="attention", backends=(CudaCosSinCache(), ReferenceCosSinCache())
)

IN_PLACE: Final = "in place"  # as `out`: results overwrite the inputs

ROPE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_INDEX_DTYPES = (torch.int32, torch.int64)


def rotate_by_position(
    op: str,
    q: Any,
    k: Any,
    pos_ids: Any,
    ragged: tuple[Any, Any] | None,  # indptr and offsets, in place of pos_ids
    rotary_dim: int | None,
    interleave: bool,
    scaling: RopeScaling,
    out: Any,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn by angles that follow from positions; returns the rotated queries and keys."""
    check = Checker(op)
    query = check.tensor("q", q, "nnz num_q_heads head_dim", dtype=ROPE_DTYPES)
    key = check.tensor("k", k, "nnz num_k_heads head_dim", dtype=query.dtype)
    indptr = offsets = None
    if ragged is None:
        pos_ids = check.tensor("pos_ids", pos_ids, "nnz", dtype=_INDEX_DTYPES)
    else:
        indptr = check.tensor("indptr", ragged[0], "num_offsets", dtype=_INDEX_DTYPES)
        check.require(indptr.shape[0] > 0, "indptr", "of batch + 1 elements", "none")
        check.bind("batch", indptr.shape[0] - 1, "indptr")
        offsets = check.tensor("offsets", ragged[1], "batch", dtype=_INDEX_DTYPES)
    rotated = check["head_dim"] if rotary_dim is None else rotary_dim
    check_rotary_dim(check, "rotary_dim", rotated, check["head_dim"])
    check_scaling(check, scaling)
    targets, sources = _outputs(check, query, key, out)
    _rope(*targets, *sources, pos_ids, indptr, offsets, rotated, interleave, scaling.rope_scale, scaling.rope_theta,
          scaling.low_freq_factor, scaling.high_freq_factor, scaling.old_context_len, backend)  # fmt: skip
    return targets


def rotate_by_cache(
    op: str,
    positions: Any,
    query: Any,
    key: Any,
    head_size: int,
    cos_sin_cache: Any,
    is_neox: bool,
    out: Any,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn by cosines and sines of a table; returns the rotated queries and keys."""
    check = Checker(op)
    q = check.tensor("query", query, "nnz q_size", dtype=ROPE_DTYPES)
    k = check.tensor("key", key, "nnz k_size", dtype=q.dtype)
    rows = check.tensor("positions", positions, "nnz", dtype=_INDEX_DTYPES)
    table = check.tensor("cos_sin_cache", cos_sin_cache, "max_position rotary_dim", dtype=ROPE_DTYPES)
    check.require(head_size > 0, "head_size", "1 or more", head_size)
    for name, size in (("query", check["q_size"]), ("key", check["k_size"])):
        check.require(size % head_size == 0, name, f"whole heads of head_size {head_size}", f"{size} columns")
    check_rotary_dim(check, "cos_sin_cache", check["rotary_dim"], head_size)
    targets, sources = _outputs(check, q, k, out)
    _rope_with_cos_sin_cache(*targets, *sources, rows, table, head_size, not is_neox, backend)
    return targets


def check_rotary_dim(check: Checker, name: str, rotary_dim: int, head_dim: int) -> None:
    fits = rotary_dim % 2 == 0 and 0 < rotary_dim <= head_dim
    check.require(fits, name, f"of an even rotary_dim up to the head's {head_dim} components", rotary_dim)


def check_scaling(check: Checker, scaling: RopeScaling) -> None:
    check.require(scaling.rope_scale > 0, "rope_scale", "positive", scaling.rope_scale)
    check.require(scaling.rope_theta > 0, "rope_theta", "positive", scaling.rope_theta)
    check.require(scaling.old_context_len >= 0, "old_context_len", "0 or more", scaling.old_context_len)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    check.require(high > low, "high_freq_factor", f"above low_freq_factor {low}", high)


def _outputs(
    check: Checker, q: torch.Tensor, k: torch.Tensor, out: Any
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Where the results go, and the inputs: None in place, since an operator's outputs must not be among its inputs."""
    if out is IN_PLACE:
        return (q, k), (None, None)
    q_out, k_out = (None, None) if out is None else out
    targets = (
        check.output("out[0]", q_out, tuple(q.shape), q.dtype),
        check.output("out[1]", k_out, tuple(k.shape), k.dtype),
    )
    return targets, (q, k)


@register_op(
    "apply_rope(Tensor(a!) q_out, Tensor(b!) k_out, Tensor? q, Tensor? k, Tensor? pos_ids, Tensor? indptr, "
    "Tensor? offsets, SymInt rotary_dim, bool interleave, float rope_scale, float rope_theta, float low_freq_factor, "
    "float high_freq_factor, SymInt old_context_len, str backend) -> ()"
)
def _rope(
    q_out: torch.Tensor,
    k_out: torch.Tensor,
    q: torch.Tensor | None,
    k: torch.Tensor | None,
    pos_ids: torch.Tensor | None,
    indptr: torch.Tensor | None,
    offsets: torch.Tensor | None,
    rotary_dim: int,
    interleave: bool,
    rope_scale: float,
    rope_theta: float,
    low_freq_factor: float,
    high_freq_factor: float,
    old_context_len: int,
    backend: str,
) -> None:
    q, k = q_out if q is None else q, k_out if k is None else k
    scaling = RopeScaling(rope_scale, rope_theta, low_freq_factor, high_freq_factor, old_context_len)
    places: Any = (indptr, offsets) if pos_ids is None else pos_ids
    problem = _describe(q.shape[-1], rotary_dim, interleave, q, k, q_out, k_out)
    chosen = ROPE.select(problem, backend).backend
    with device_guard(q_out):
        chosen.run(problem, scaling, q_out, k_out, q, k, places)


@register_op(
    "apply_rope_with_cos_sin_cache(Tensor(a!) q_out, Tensor(b!) k_out, Tensor? q, Tensor? k, Tensor positions, "
    "Tensor cos_sin_cache, SymInt head_size, bool interleave, str backend) -> ()"
)
def _rope_with_cos_sin_cache(
    q_out: torch.Tensor,
    k_out: torch.Tensor,
    q: torch.Tensor | None,
    k: torch.Tensor | None,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    head_size: int,
    interleave: bool,
    backend: str,
) -> None:
    q, k = q_out if q is None else q, k_out if k is None else k
    problem = _describe(head_size, cos_sin_cache.shape[1], interleave, q, k, q_out, k_out)
    chosen = COS_SIN_CACHE.select(problem, backend).backend
    if settings.debug_checks or not q.is_cuda:
        _check_positions(positions, cos_sin_cache.shape[0])
    heads = [t.unflatten(-1, (t.shape[-1] // head_size, head_size)) for t in (q_out, k_out, q, k)]
    with device_guard(q_out):
        chosen.run(problem, *heads, positions, cos_sin_cache)


def _describe(head_dim: int, rotary_dim: int, interleave: bool, *tensors: torch.Tensor) -> RopeProblem:
    return RopeProblem(
        dtype=tensors[0].dtype,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        interleave=interleave,
        unit_strides=have_unit_strides(*tensors),
        **RopeProblem.where(tensors[0]),
    )


def _check_positions(positions: torch.Tensor, max_position: int) -> None:
    if positions.numel() == 0:
        return
    low, high = int(positions.min()), int(positions.max())
    if low < 0 or high >= max_position:
        expected = f"from 0 to {max_position - 1}"
        raise ArgumentError.of("apply_rope_with_cos_sin_cache", "positions", expected, f"{low} to {high}")
