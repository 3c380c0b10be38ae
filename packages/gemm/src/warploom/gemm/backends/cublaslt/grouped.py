"""Grouped products through ``torch._grouped_mm`` and ``torch._scaled_grouped_mm``: the offsets stay on the device."""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.cublaslt.scaled_mm import has_aten
from warploom.gemm.offsets import gathered
from warploom.gemm.problems.grouped import GroupedProblem, GroupedScaledProblem

__all__ = ["CublasltGrouped", "CublasltGroupedScaled", "grouped_mm", "grouped_mm_support", "write_result"]

_MAX_GROUPS = 1023  # torch prepares the groups with one thread each in one thread block
_ALIGNMENT = 16  # bytes of every stride


def _shared_support(operator: str, since: str, arch: int, groups: int, out_dtype: torch.dtype) -> Support:
    return Support.of(
        (has_aten(operator), f"torch {torch.__version__} has no {operator} ({since} and later do)"),
        (arch // 10 in (9, 10), f"{operator} reads the offsets on the host, or is missing, on sm_{arch}"),
        (out_dtype == torch.bfloat16, f"{operator} writes bfloat16, not {out_dtype}"),
        (groups <= _MAX_GROUPS, f"{operator} takes at most {_MAX_GROUPS} groups, got {groups}"),
    )


def grouped_mm_support(arch: int, n: int, k: int, groups: int, dtype: torch.dtype, out_dtype: torch.dtype) -> Support:
    """What ``torch._grouped_mm`` takes without reading the offsets on the host."""
    return _shared_support("_grouped_mm", "2.8", arch, groups, out_dtype) & Support.of(
        (dtype == torch.bfloat16, f"_grouped_mm multiplies bfloat16, not {dtype}"),
        (k % 8 == 0 and n % 8 == 0, f"_grouped_mm needs n and k to be multiples of 8, got {n} and {k}"),
    )


def _row_aligned(x: torch.Tensor) -> torch.Tensor:
    """`x` with contiguous 16-byte aligned rows, or a copy that has them."""
    dense = x.stride(-1) == 1 and x.data_ptr() % _ALIGNMENT == 0
    dense = dense and all(stride * x.element_size() % _ALIGNMENT == 0 for stride in x.stride()[:-1])
    if dense and x.stride(-2) >= x.shape[-1]:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _matrices(b: torch.Tensor) -> torch.Tensor:
    """``b[g, n, k]`` with either of its matrix dimensions contiguous."""
    return _row_aligned(b.mT).mT if b.stride(-2) == 1 and b.stride(-1) != 1 else _row_aligned(b)


def grouped_mm(a: torch.Tensor, b: torch.Tensor, m_indptr: torch.Tensor) -> torch.Tensor:
    """``a[rows of g] @ b[g, n, k].T`` in bfloat16."""
    if a.numel() == 0 or b.numel() == 0:
        return a.new_zeros((a.shape[0], b.shape[1]))
    return torch._grouped_mm(_row_aligned(a), _matrices(b).mT, offs=m_indptr[1:].to(torch.int32))


def write_result(out: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """The result itself, or the caller's buffer with it copied in."""
    return result if out is None else out.copy_(result)


class CublasltGrouped(Backend):
    """`grouped_mm_bf16`. torch allocates the result: writing into a caller's `out` costs a copy."""

    name = "cublaslt"
    needs_gpu = True

    def supports(self, problem: GroupedProblem) -> Support:
        return grouped_mm_support(problem.arch, problem.n, problem.k, problem.groups, problem.dtype, problem.out_dtype)

    def run(
        self,
        problem: GroupedProblem,
        out: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        m_indptr: torch.Tensor,
        row_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return write_result(out, grouped_mm(gathered(a, row_indices), b, m_indptr))


class CublasltGroupedScaled(Backend):
    """`grouped_mm_fp8`. torch allocates the result: writing into a caller's `out` costs a copy."""

    name = "cublaslt"
    needs_gpu = True

    def supports(self, problem: GroupedScaledProblem) -> Support:
        n, k = problem.n, problem.k
        e4m3 = problem.a_dtype == problem.b_dtype == torch.float8_e4m3fn
        return _shared_support(
            "_scaled_grouped_mm", "2.8", problem.arch, problem.groups, problem.out_dtype
        ) & Support.of(
            (e4m3, f"_scaled_grouped_mm multiplies e4m3 by e4m3, not {problem.a_dtype} by {problem.b_dtype}"),
            (k % 16 == 0 and n % 16 == 0, f"_scaled_grouped_mm needs n and k to be multiples of 16, got {n} and {k}"),
        )

    def run(
        self,
        problem: GroupedScaledProblem,
        out: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        m_indptr: torch.Tensor,
        row_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        a, a_scale = gathered(a, row_indices), gathered(a_scale, row_indices)
        if a.numel() == 0 or b.numel() == 0:
            return write_result(out, a.new_zeros((problem.rows, problem.n), dtype=problem.out_dtype))
        result = torch._scaled_grouped_mm(
            _row_aligned(a),
            _row_aligned(b).mT,
            a_scale.contiguous(),
            b_scale.contiguous(),
            offs=m_indptr[1:].to(torch.int32),
            out_dtype=problem.out_dtype,
        )
        return write_result(out, result)
