"""Awkward inputs: ragged lengths with empty requests, strided tensors, poisoned outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def ragged_lengths(batch: int, max_len: int, seed: int = 0, *, empty: float = 0.2) -> torch.Tensor:
    """Return request lengths as they come in practice and in nightmares, an int32 CPU tensor ``[batch]``.

    Lengths are spread evenly over their logarithm, so that short ones are as frequent as long ones. With two requests
    or more, one has exactly `max_len`; with three or more, one has length 1; a share `empty` (at least one request when
    ``batch >= 4`` and ``empty > 0``) has length 0. Positions are shuffled. The same arguments give the same lengths.

    Examples
    --------
    >>> lengths = ragged_lengths(8, 100, seed=1)
    >>> int(lengths.max()), int(lengths.min())
    (100, 0)
    """
    if batch < 0 or max_len < 0:
        raise ValueError(f"ragged_lengths: batch and max_len must not be negative, got {batch} and {max_len}")
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(batch, generator=generator, dtype=torch.float64)
    lengths = (float(max_len + 1) ** spread).floor().clamp(max=max_len).to(torch.int32)
    if batch >= 2:
        lengths[0] = max_len
    if batch >= 3:
        lengths[1] = min(1, max_len)
    if batch >= 4 and empty > 0:
        lengths[2 : 2 + max(1, min(batch - 2, round(batch * empty)))] = 0
    return lengths[torch.randperm(batch, generator=generator)]


def indptr_of(lengths: torch.Tensor | Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Return the int32 offsets ``[batch + 1]`` of requests of these lengths laid end to end.

    Examples
    --------
    >>> indptr_of([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    values = torch.as_tensor(lengths, dtype=torch.int64).cpu()
    return torch.cat([torch.zeros(1, dtype=torch.int64), values.cumsum(0)]).to(torch.int32).to(device)


def random_normal(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    scale: float = 1.0,
) -> torch.Tensor:
    """Return normally distributed values of any floating dtype, fp8 included; the same on every device.

    Examples
    --------
    >>> random_normal((2, 3), torch.float8_e4m3fn).dtype
    torch.float8_e4m3fn
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tuple(shape), generator=generator) * scale
    if dtype.is_floating_point and dtype.itemsize == 1:
        limit = torch.finfo(dtype).max
        values = values.clamp(-limit, limit)
    return values.to(dtype).to(device)


def random_strided(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    padding: int = 8,
    last_contiguous: bool = True,
) -> torch.Tensor:
    """Return a normally distributed view with gaps between its rows and an offset into its storage.

    The gaps hold NaN (or the largest integers), so that a kernel which assumes dense strides gives visibly wrong
    results.

    Parameters
    ----------
    padding : int
        Elements added at the end of every dimension. Keep a multiple of 8 so that 16-byte vector loads stay legal; use
        1 to test that they are not assumed.
    last_contiguous : bool
        False also spaces the elements of the last dimension two apart.

    Examples
    --------
    >>> x = random_strided((4, 6))
    >>> x.shape, x.is_contiguous(), x.stride(-1)
    (torch.Size([4, 6]), False, 1)
    """
    shape = tuple(shape)
    spacing = 1 if last_contiguous else 2
    padded = [size + padding for size in shape[:-1]] + [shape[-1] * spacing + padding]
    storage = poison_like(torch.empty(padded, dtype=dtype, device=device))
    # A view that starts inside the storage: every dimension keeps `padding` elements split over both ends.
    lead = padding // 2
    view = storage[tuple(slice(lead, lead + size) for size in shape[:-1])]
    view = view[..., lead : lead + shape[-1] * spacing : spacing]
    view.copy_(random_normal(shape, dtype, seed=seed, device=device))
    return view


def poison_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor like `tensor` (shape, strides, dtype, device) whose every element is NaN or has all bits set.

    For outputs: an element that a kernel fails to write shows as NaN, or as -1 / the largest integer.

    Examples
    --------
    >>> poison_like(torch.zeros(2))
    tensor([nan, nan])
    """
    out = torch.empty_like(tensor)
    if out.dtype == torch.bool:
        return out.fill_(True)
    if out.dtype.itemsize == 1:
        # All bits set is NaN in e4m3fn, e5m2 and e8m0, and 255 or -1 in the integer types.
        out.view(torch.uint8).fill_(0xFF)
        return out
    if out.dtype.is_floating_point or out.dtype.is_complex:
        return out.fill_(float("nan"))
    return out.fill_(-1) if out.dtype.is_signed else out.fill_(torch.iinfo(out.dtype).max)
