"""What the fp8 backends share about ``torch._scaled_mm``: what it accepts, and how it wants its operands.

The conditions are those of torch's ScaledBlas.cpp; a request that fails one is refused with it as the reason rather
than left to raise, or to be read with wrong strides, inside torch.
"""

from __future__ import annotations

import functools

import torch

from warploom.core.backends import Support

__all__ = ["cuda_version", "has_aten", "k_major", "operand_support", "row_scale_support", "scaled_mm"]

_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_ALIGNMENT = 16  # bytes; cuBLASLt's for every fp8 operand


@functools.cache
def cuda_version() -> tuple[int, int]:
    """Version of the CUDA libraries that torch was built with; (0, 0) for a CPU build."""
    major, _, minor = (torch.version.cuda or "0.0").partition(".")
    return int(major), int(minor.partition(".")[0])


def has_aten(name: str) -> bool:
    """Whether the installed torch has an operator of this name."""
    return hasattr(torch.ops.aten, name)


def operand_support(
    n: int, k: int, a_dtype: torch.dtype, b_dtype: torch.dtype, out_dtype: torch.dtype, activation: str = ""
) -> Support:
    """What every fp8 product of cuBLASLt demands."""
    return Support.of(
        (k % 16 == 0, f"cuBLASLt needs k a multiple of 16 for fp8, k is {k}"),
        (n % 16 == 0, f"cuBLASLt needs n a multiple of 16 for fp8, n is {n}"),
        (_E4M3 in (a_dtype, b_dtype), "cuBLASLt multiplies no e5m2 by e5m2"),
        (out_dtype.itemsize > 1, f"cuBLASLt through torch is not asked for {out_dtype} here"),
        (not activation, f"cuBLASLt through torch applies no {activation}"),
    )


def row_scale_support(arch: int, a_dtype: torch.dtype, b_dtype: torch.dtype, out_dtype: torch.dtype) -> Support:
    """Scales per row: cuBLASLt has them on sm_90 since CUDA 12.9; elsewhere torch falls back to a CUTLASS kernel."""
    in_cublaslt = arch == 90 and cuda_version() >= (12, 9)
    major, minor = cuda_version()
    where = f"torch {torch.__version__} with CUDA {major}.{minor} on sm_{arch}"
    return Support.of(
        (in_cublaslt or out_dtype == torch.bfloat16, f"row scales write only bfloat16 with {where}, not {out_dtype}"),
        (in_cublaslt or (a_dtype == b_dtype == _E4M3), f"row scales need e4m3 operands with {where}"),
    )


def k_major(x: torch.Tensor) -> torch.Tensor:
    """`x` as ``[rows, k]`` with dense, 16-byte aligned rows, the only operand layout of fp8 on Hopper; else a copy."""
    rows, k = x.shape
    if x.stride(1) == 1 and x.data_ptr() % _ALIGNMENT == 0:
        if rows == 1:
            return x.reshape(k).view(rows, k)  # the stride of a single row may say anything; torch reads it
        if x.stride(0) >= k and x.stride(0) % _ALIGNMENT == 0:
            return x
    return x.contiguous() if not x.is_contiguous() or x.data_ptr() % _ALIGNMENT == 0 else x.clone()


def scaled_mm(
    out: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    a_scale: torch.Tensor,
    b_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> None:
    """``torch._scaled_mm`` of K-major ``a[m, k]`` and ``b[n, k]`` into any dense `out`, with accurate accumulation."""
    if out.numel() == 0:
        return
    if a.shape[1] == 0:
        out.zero_() if bias is None else out.copy_(bias.expand_as(out))
        return
    # cuBLASLt adds a bias of the output's dtype, and none to float32 outputs.
    fused = None if bias is None or out.dtype == torch.float32 else bias.to(out.dtype)
    direct = out.is_contiguous() and out.data_ptr() % _ALIGNMENT == 0
    target = out if direct else torch.empty(out.shape, dtype=out.dtype, device=out.device)
    torch._scaled_mm(a, b.t(), a_scale, b_scale, fused, out_dtype=out.dtype, out=target)
    if not direct:
        out.copy_(target)
    if bias is not None and fused is None:
        out.add_(bias)
