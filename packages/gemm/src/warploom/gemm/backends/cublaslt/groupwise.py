"""fp8 products with 1x128 and 128x128 block scales through ``torch._scaled_mm``, which calls cuBLASLt.

Scale layouts that cuBLASLt reads (its manual's "1D 128-element and 2D 128x128 block scaling"), with L = ceil(k / 128):

* 1x128: ``[rows, L]``, rows contiguous, K stride = rows rounded up to a multiple of 4;
* 128x128: ``[ceil(rows / 128), L]``, K contiguous, row stride = L rounded up to a multiple of 4.

torch's first interface takes neither padding, and gives wrong numbers where it would be needed. Rows are therefore
padded here, and K blocks go through the second interface (``_scaled_mm_v2``), which takes the padded scales.
"""

from __future__ import annotations

import torch

from warploom.core.backends import Backend, Support
from warploom.gemm.backends.cublaslt.scaled_mm import cuda_version, has_aten, k_major, operand_support, scaled_mm
from warploom.gemm.problems.groupwise import GroupwiseProblem
from warploom.gemm.scales import ceil_div, scale_of_rows

__all__ = ["CublasltGroupwise"]

_BLOCK = 128
_BY_ROW_AND_K128, _BY_BLOCK_128 = 4, 5  # torch.nn.functional.ScalingType.BlockWise1x128, BlockWise128x128
_ROW_MULTIPLE = 16  # padding to 4 would satisfy the scales; whole 16-row tiles are what cuBLASLt is tested with


def _mn_major(scale: torch.Tensor) -> torch.Tensor:
    """``[rows, L]`` with strides (1, rows), also where a dimension is 1: a view where it can be, else a copy."""
    rows, k_blocks = scale.shape
    return _aligned(scale.mT.reshape(-1)).view(k_blocks, rows).mT


def _aligned(scale: torch.Tensor) -> torch.Tensor:
    """cuBLASLt reads scales from 16-byte boundaries."""
    return scale if scale.data_ptr() % 16 == 0 else scale.clone()


def _padded(x: torch.Tensor, rows: int) -> torch.Tensor:
    """`x` with zero rows appended."""
    return torch.nn.functional.pad(x.view(torch.uint8), (0, 0, 0, rows - x.shape[0])).view(x.dtype)


class CublasltGroupwise(Backend):
    """`gemm_fp8_nt_groupwise`; scales of any row granularity, expanded to what cuBLASLt has when they are others."""

    name = "cublaslt"
    needs_gpu = True
    min_arch = 90

    def supports(self, problem: GroupwiseProblem) -> Support:
        _, _, block_k = problem.granularity
        major, minor = cuda_version()
        k_blocks = ceil_div(problem.k, _BLOCK)
        by_block = problem.granularity[1] == _BLOCK
        return operand_support(problem.n, problem.k, problem.a_dtype, problem.b_dtype, problem.out_dtype) & Support.of(
            (problem.arch == 90, f"cuBLASLt has 1x128 and 128x128 scales on sm_90 only, this is sm_{problem.arch}"),
            ((major, minor) >= (12, 9), f"needs torch with CUDA 12.9 or later, this one has {major}.{minor}"),
            (block_k == _BLOCK, f"cuBLASLt scales blocks of 128 along K, scale_granularity_mnk says {block_k}"),
            (
                not by_block or k_blocks % 4 == 0 or has_aten("_scaled_mm_v2"),
                f"{k_blocks} K blocks of 128x128 scales are padded to a multiple of 4, which needs torch 2.10 or later",
            ),
        )

    def run(
        self,
        problem: GroupwiseProblem,
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
    ) -> None:
        if out.numel() == 0:
            return
        m, (block_m, block_n, _) = problem.m, problem.granularity
        a_scale = scale_of_rows(a_scale, m, block_m)
        if block_n not in (1, _BLOCK):
            b_scale = scale_of_rows(b_scale, problem.n, block_n)
        if m % 4 == 0 and m >= _ROW_MULTIPLE:
            self._product(out, a, b, a_scale, b_scale, block_n == _BLOCK)
            return
        rows = ceil_div(m, _ROW_MULTIPLE) * _ROW_MULTIPLE
        whole = torch.empty(rows, problem.n, dtype=out.dtype, device=out.device)
        padded_scale = torch.nn.functional.pad(a_scale, (0, 0, 0, rows - m))
        self._product(whole, _padded(a, rows), b, padded_scale, b_scale, block_n == _BLOCK)
        out.copy_(whole[:m])

    @staticmethod
    def _product(
        out: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        a_scale: torch.Tensor,
        b_scale: torch.Tensor,
        by_block: bool,
    ) -> None:
        a, b, a_scale = k_major(a), k_major(b), _mn_major(a_scale)
        k_blocks = a_scale.shape[1]
        if not by_block:
            scaled_mm(out, a, b, a_scale, _mn_major(b_scale).t())
        elif k_blocks % 4 == 0:
            scaled_mm(out, a, b, a_scale, _aligned(b_scale.contiguous()).t())
        else:
            padded = torch.nn.functional.pad(b_scale, (0, -k_blocks % 4)).t()
            target = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
            torch.ops.aten._scaled_mm_v2.out(
                a, b.t(), [a_scale], [_BY_ROW_AND_K128], [], [padded], [_BY_BLOCK_128], [], None, out.dtype, out=target
            )
            if target is not out:
                out.copy_(target)
