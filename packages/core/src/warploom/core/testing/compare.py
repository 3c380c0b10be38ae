"""Value comparison with tolerances that follow from the output's dtype.

Where the tolerance comes from
------------------------------
Let ``u(t)`` be the unit roundoff of a type, half the distance from 1 to the next number (``finfo.eps / 2``). An
operator of this library accumulates in float32 and rounds its result to the output dtype ``t`` once. Two such results
differ by

* ``2 u(t)``: each of the two roundings to the output dtype,
* ``2 u(t)`` more for 16-bit outputs only: tensor cores take intermediate factors (the probabilities of attention) in
  the same 16-bit type, so either side may have rounded there too,
* ``256 u(float32)``: float32 sums taken in another order. Rounding errors of random sign over ``n`` terms grow like
  ``sqrt(n) u``; 256 covers sums of 2**16 terms, and the approximate ``ex2`` / ``lg2`` instructions (2 ulp) with them.

That sum is ``rtol``. An element which is small because large terms cancelled has the *absolute* error of its terms, not
a relative one: ``atol = rtol * rms`` with the root mean square over the element's last dimension, plus the smallest
step of the dtype near zero. Integer and boolean outputs, and types that only ever hold exact codes (fp4 pairs, e8m0
scales), must be equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_FLOAT32_ROUNDOFF = torch.finfo(torch.float32).eps / 2
_ACCUMULATION_FACTOR = 256.0
# Types whose values are codes rather than roundings of a sum; some of them cannot be converted to float64 by every
# torch.
_CODE_TYPES = {getattr(torch, name, None) for name in ("float4_e2m1fn_x2", "float8_e8m0fnu")} - {None}


@dataclass(frozen=True)
class Tolerance:
    """Allowed error: ``|actual - expected| <= rtol * |expected| + row_rtol * rms(row of expected) + atol``."""

    rtol: float
    row_rtol: float
    atol: float


def tolerance_of(dtype: torch.dtype) -> Tolerance:
    """Return the tolerance of an output of type `dtype`; the module docstring derives it.

    Examples
    --------
    >>> tolerance_of(torch.bfloat16).rtol < 0.016 < 0.0161
    True
    >>> tolerance_of(torch.int32)
    Tolerance(rtol=0.0, row_rtol=0.0, atol=0.0)
    """
    if not dtype.is_floating_point or dtype in _CODE_TYPES:
        return Tolerance(0.0, 0.0, 0.0)
    info = torch.finfo(dtype)
    roundoff = info.eps / 2
    roundings = 4 if info.bits == 16 else 2
    rtol = roundings * roundoff + _ACCUMULATION_FACTOR * min(roundoff, _FLOAT32_ROUNDOFF)
    # Below the smallest normal number the spacing is constant; float32 kernels may flush such numbers to zero.
    step_near_zero = info.tiny if info.bits >= 32 else info.tiny * info.eps
    return Tolerance(rtol, rtol, step_near_zero)


def assert_close(
    actual: torch.Tensor,
    expected: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    what: str = "",
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Assert that two tensors hold the same values up to the rounding of the output's dtype.

    Parameters
    ----------
    actual, expected : torch.Tensor
        Same shape; dtypes and devices may differ (an oracle in float64 on the CPU is fine). Compared in float64.
    dtype : torch.dtype, optional
        The dtype whose rounding sets the tolerance; that of `actual` by default. Give the *coarser* one when a value
        went through it on the way, e.g. the scale of an fp8 quantiser compared after dequantising.
    what : str
        Named in the message.
    rtol, atol : float, optional
        Replace the derived tolerance. A given `atol` also replaces the part that follows the row's magnitude.

    Raises
    ------
    AssertionError
        Shapes differ, NaN or infinities stand at different places, or a value is further off than allowed. The message
        shows the worst element: its index, both values, the error and what was allowed.

    Examples
    --------
    >>> assert_close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-7]))
    """
    prefix = f"{what}: " if what else ""
    if tuple(actual.shape) != tuple(expected.shape):
        raise AssertionError(f"{prefix}shapes differ: got {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    if actual.numel() == 0:
        return
    tolerance = tolerance_of(dtype or actual.dtype)
    got, want = _as_float64(actual, expected)
    _assert_same_specials(got, want, prefix)

    finite = torch.isfinite(want)
    error = torch.where(finite, (got - want).abs(), 0.0)
    if atol is not None:
        floor: torch.Tensor | float = atol
    else:
        floor = tolerance.row_rtol * _row_rms(want, finite) + tolerance.atol
    relative = tolerance.rtol if rtol is None else rtol
    allowed = relative * torch.where(finite, want.abs(), 0.0) + floor
    if bool((error <= allowed).all()):
        return
    _raise_worst(got, want, error, allowed, prefix, dtype or actual.dtype)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ``||actual - expected|| / ||expected||`` (Frobenius, float64).

    Equal NaN or infinities at equal places count as exact; any other NaN or infinity gives ``inf``.

    Examples
    --------
    >>> relative_error(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 0.0]))
    inf
    """
    if tuple(actual.shape) != tuple(expected.shape):
        return math.inf
    got, want = _as_float64(actual, expected)
    same = (got == want) | (torch.isnan(got) & torch.isnan(want))
    difference = torch.where(same, 0.0, got - want)
    if not bool(torch.isfinite(difference).all()):
        return math.inf
    error = float(difference.norm())
    scale = float(torch.where(torch.isfinite(want), want, 0.0).norm())
    if error == 0.0:
        return 0.0
    return error / scale if scale > 0.0 else math.inf


def _as_float64(actual: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of both (bytes of code types), on the GPU if either is there: huge tensors take minutes on the CPU."""
    device = actual.device if actual.is_cuda else expected.device

    def values(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().to(device)
        if tensor.dtype in _CODE_TYPES:
            tensor = tensor.contiguous().view(torch.uint8)
        return tensor.to(torch.float64)

    return values(actual), values(expected)


def _row_rms(want: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """Root mean square of the finite values over the last dimension, kept for broadcasting."""
    values = torch.where(finite, want, 0.0)
    if values.dim() == 0:
        return values.abs()
    count = finite.sum(-1, keepdim=True).clamp(min=1)
    return (values.square().sum(-1, keepdim=True) / count).sqrt()


def _assert_same_specials(got: torch.Tensor, want: torch.Tensor, prefix: str) -> None:
    """NaN and each sign of infinity must stand at the same places."""
    kinds = (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf))
    for kind, test in kinds:
        wrong = test(got) != test(want)
        if not bool(wrong.any()):
            continue
        index = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{prefix}{kind} at different places: {int(wrong.sum())} of {wrong.numel()} elements, "
            f"first at {list(index)}: got {got[index].item():.6g}, expected {want[index].item():.6g}"
        )


def _raise_worst(
    got: torch.Tensor, want: torch.Tensor, error: torch.Tensor, allowed: torch.Tensor, prefix: str, dtype: torch.dtype
) -> None:
    wrong = error > allowed
    # The worst element is the one furthest beyond its own allowance, not the one of the largest absolute error.
    excess = torch.where(wrong, error / allowed.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    flat = int(excess.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(flat), excess.shape)]
    at = tuple(index)
    scale = abs(want[at].item())
    share = error[at].item() / scale if scale else math.inf
    raise AssertionError(
        f"{prefix}{int(wrong.sum())} of {wrong.numel()} elements differ by more than the tolerance of {dtype}; "
        f"worst at {index}: got {got[at].item():.8g}, expected {want[at].item():.8g}, error {error[at].item():.3g} "
        f"(relative {share:.3g}, allowed {allowed.broadcast_to(error.shape)[at].item():.3g}); "
        f"relative error of the whole tensor {relative_error(got, want):.3g}"
    )
