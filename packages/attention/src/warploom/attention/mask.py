"""Packing boolean masks eight to a byte."""

from __future__ import annotations

from typing import Any

import torch

from warploom.attention.backends.cuda.mask import CudaPackbits
from warploom.attention.backends.reference.mask import ReferencePackbits
from warploom.attention.problems.mask import PackProblem
from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op

__all__ = ["packbits", "segment_packbits"]

PACKBITS = Operator("packbits", family="attention", backends=(CudaPackbits(), ReferencePackbits()))

_BITORDERS = ("big", "little")
_INDEX_DTYPES = (torch.int32, torch.int64)


def packbits(x: Any, bitorder: str = "big", *, out: Any = None, backend: str = "auto") -> torch.Tensor:
    """Pack booleans eight to a byte, as `numpy.packbits` does.

    Parameters
    ----------
    x : torch.Tensor
        `[n]`, bool or any number: what is not zero is 1.
    bitorder : {"big", "little"}
        Whether the first of eight becomes the highest or the lowest bit. Attention masks are "little".
    out : torch.Tensor, optional
        `[ceil(n / 8)]`, uint8.
    backend : str
        "auto", "cuda" or "reference".

    Returns
    -------
    torch.Tensor
        `[ceil(n / 8)]`, uint8; missing bits of the last byte are 0.

    Raises
    ------
    ArgumentError
        `x` is not 1-D, or the bit order is unknown.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import packbits
    >>> packbits(torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1])).tolist()
    [179, 128]
    """
    check = Checker("packbits")
    flags = check.tensor("x", x, "n")
    _check_bitorder(check, bitorder)
    packed = check.output("out", out, ((check["n"] + 7) // 8,), torch.uint8)
    _packbits(packed, flags, None, None, bitorder, backend)
    return packed


def segment_packbits(
    x: Any,
    indptr: Any,
    bitorder: str = "big",
    *,
    out: tuple[Any, Any] | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack segments of booleans, each starting at a byte of its own.

    Without `out`, the number of bytes has to be read from the device, so the call waits for it and cannot be captured
    in a graph; with `out` nothing is waited for.

    Parameters
    ----------
    x : torch.Tensor
        `[indptr[-1]]`, bool or any number: what is not zero is 1.
    indptr : torch.Tensor
        `[batch + 1]`, int32 or int64, where each segment starts.
    bitorder : {"big", "little"}
        Whether the first of eight becomes the highest or the lowest bit. Attention masks are "little".
    out : tuple of torch.Tensor, optional
        Buffers for both results: uint8 of `(n + 7 * batch) // 8` bytes or more, and int32 `[batch + 1]`. Bytes after
        the last segment are set to 0.
    backend : str
        "auto", "cuda" or "reference".

    Returns
    -------
    packed : torch.Tensor
        `[packed_indptr[-1]]`, uint8, or the buffer of `out`.
    packed_indptr : torch.Tensor
        `[batch + 1]`, int32, the byte at which each segment starts.

    Raises
    ------
    ArgumentError
        A tensor of the wrong dtype, shape or device, or an unknown bit order.

    Examples
    --------
    >>> import torch
    >>> from warploom.attention import segment_packbits
    >>> x = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0])
    >>> packed, packed_indptr = segment_packbits(x, torch.tensor([0, 2, 2, 12]).int(), bitorder="little")
    >>> packed.tolist(), packed_indptr.tolist()
    ([3, 254, 1], [0, 1, 1, 3])
    """
    check = Checker("segment_packbits")
    flags = check.tensor("x", x, "n")
    starts = check.tensor("indptr", indptr, "offsets", dtype=_INDEX_DTYPES)
    check.require(starts.shape[0] > 0, "indptr", "of batch + 1 elements", "none")
    _check_bitorder(check, bitorder)
    if out is None:
        return _segment_packbits(flags, starts, bitorder, backend)
    batch = starts.shape[0] - 1
    packed = check.tensor("out[0]", out[0], "bytes", dtype=torch.uint8)
    most = (check["n"] + 7 * batch) // 8
    check.require(packed.shape[0] >= most, "out[0]", f"of {most} bytes or more", packed.shape[0])
    packed_indptr = check.output("out[1]", out[1], (batch + 1,), torch.int32)
    packed_indptr.copy_(_packed_indptr(starts))
    _packbits(packed, flags, starts, packed_indptr.contiguous(), bitorder, backend)
    return packed, packed_indptr


def _check_bitorder(check: Checker, bitorder: str) -> None:
    check.require(bitorder in _BITORDERS, "bitorder", "'big' or 'little'", repr(bitorder))


def _packed_indptr(indptr: torch.Tensor) -> torch.Tensor:
    lengths = (indptr[1:] - indptr[:-1] + 7) // 8
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


@register_op(
    "packbits(Tensor(a!) packed, Tensor x, Tensor? indptr, Tensor? packed_indptr, str bitorder, str backend) -> ()"
)
def _packbits(
    packed: torch.Tensor,
    x: torch.Tensor,
    indptr: torch.Tensor | None,
    packed_indptr: torch.Tensor | None,
    bitorder: str,
    backend: str,
) -> None:
    problem = PackProblem(bitorder=bitorder, segmented=indptr is not None, **PackProblem.where(x))
    chosen = PACKBITS.select(problem, backend).backend
    with device_guard(x):
        chosen.run(problem, packed, x, indptr, packed_indptr)


def _segments_of_unknown_size(
    x: torch.Tensor, indptr: torch.Tensor, bitorder: str, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    num_bytes = torch.library.get_ctx().new_dynamic_size()
    return x.new_empty(num_bytes, dtype=torch.uint8), indptr.new_empty(indptr.shape, dtype=torch.int32)


@register_op(
    "segment_packbits(Tensor x, Tensor indptr, str bitorder, str backend) -> (Tensor, Tensor)",
    fake=_segments_of_unknown_size,
)
def _segment_packbits(
    x: torch.Tensor, indptr: torch.Tensor, bitorder: str, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    packed_indptr = _packed_indptr(indptr)
    packed = torch.empty(int(packed_indptr[-1]), dtype=torch.uint8, device=x.device)
    _packbits(packed, x, indptr, packed_indptr, bitorder, backend)
    return packed, packed_indptr
