"""Workspaces: one caller-owned ``uint8`` buffer, cut into named tensors.

A plan describes what it needs once (`WorkspaceLayout.add`), says how large that is (`WorkspaceLayout.nbytes`), and
binds the layout to the caller's buffer or to one of its own (`WorkspaceLayout.bind`). Binding allocates nothing when a
buffer is given, so that addresses stay put across CUDA-graph replays. It makes no views either: kernels take addresses,
and a step that plans anew has no time for a dozen tensors that nobody looks at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from warploom.core.errors import ArgumentError

__all__ = ["ALIGNMENT", "Workspace", "WorkspaceLayout", "allocate"]

# One 256-byte step serves every need: cudaMalloc's own alignment, TMA (128 bytes for swizzled shared memory tiles, 16
# for global addresses), vector loads, and no two fields in one 128-byte cache line (counters that several CTAs update).
ALIGNMENT = 256


@dataclass(frozen=True)
class _Field:
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class WorkspaceLayout:
    """Named tensors laid out in one buffer, each at a multiple of 256 bytes.

    Parameters
    ----------
    what : str
        Named in error messages, e.g. ``"BatchAttention.plan"``.

    Examples
    --------
    >>> layout = WorkspaceLayout("plan").add("lse", (4, 32), torch.float32).add("counters", (3,), torch.int32)
    >>> layout.nbytes
    768
    >>> workspace = layout.bind(None, "cpu")
    >>> workspace["lse"].shape, workspace["counters"].dtype
    (torch.Size([4, 32]), torch.int32)
    >>> workspace.address("counters") - workspace.address("lse")
    512
    """

    def __init__(self, what: str = "workspace") -> None:
        self._what = what
        self._fields: dict[str, _Field] = {}
        self._end = 0

    def add(self, name: str, shape: Sequence[int] | int, dtype: torch.dtype) -> WorkspaceLayout:
        """Append a tensor and return the layout, so that calls chain.

        Raises
        ------
        ArgumentError
            The name is taken, or a dimension is negative.
        """
        if name in self._fields:
            raise ArgumentError(f"{self._what}: workspace already has a tensor named {name!r}.")
        dims = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
        if any(size < 0 for size in dims):
            raise ArgumentError.of(self._what, name, "a shape without negative sizes", dims)
        field = _Field(self._end, dims, dtype)
        self._fields[name] = field
        self._end += _aligned(field.nbytes)
        return self

    @property
    def nbytes(self) -> int:
        """Bytes that a buffer must have: the padded sizes of all tensors."""
        return self._end

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in the order in which they lie in the buffer."""
        return tuple(self._fields)

    def bind(self, buffer: torch.Tensor | None, device: torch.device | str, *, offset: int = 0) -> Workspace:
        """Lay the tensors into `buffer`.

        Parameters
        ----------
        buffer : torch.Tensor, optional
            Contiguous 1-D ``uint8`` tensor on `device` of at least `nbytes` bytes, starting at a multiple of 256 bytes.
            None allocates one. Contents are left as they are.
        device : torch.device or str
            Where the tensors are needed.
        offset : int
            Bytes of the buffer before the tensors, a multiple of 256.

        Raises
        ------
        ArgumentError
            The buffer is too small (the message gives required and given bytes), misaligned, on another device, not
            contiguous or not ``uint8``.
        """
        device = _with_index(device)
        if buffer is None:
            buffer = allocate(offset + self.nbytes, device)
        else:
            self._check(buffer, device, offset)
        return self.at(buffer, offset)

    def at(self, buffer: torch.Tensor, offset: int = 0) -> Workspace:
        """`bind` to a buffer that is known to fit."""
        return Workspace(self._fields, buffer, offset)

    def _check(self, buffer: torch.Tensor, device: torch.device, offset: int) -> None:
        def refuse(expected: str, got: object, hint: str = "") -> ArgumentError:
            return ArgumentError.of(self._what, "workspace", expected, got, hint)

        if not isinstance(buffer, torch.Tensor) or buffer.dtype != torch.uint8:
            got = getattr(buffer, "dtype", type(buffer).__name__)
            raise refuse("a uint8 tensor", got, "Allocate it with torch.empty(nbytes, dtype=torch.uint8, device=…).")
        if buffer.dim() != 1 or not buffer.is_contiguous():
            raise refuse("1-D and contiguous", f"shape {tuple(buffer.shape)}, strides {tuple(buffer.stride())}")
        if buffer.device != device:
            raise refuse(f"on {device}", buffer.device)
        if buffer.numel() < offset + self.nbytes:
            needed = offset + self.nbytes
            raise refuse(
                f"at least {needed} bytes ({_readable(needed)})",
                f"{buffer.numel()} bytes ({_readable(buffer.numel())})",
                "Ask workspace_size(...) for the size, or pass None to have it allocated.",
            )
        if self.nbytes and buffer.data_ptr() % ALIGNMENT:
            raise refuse(
                f"aligned to {ALIGNMENT} bytes",
                f"an address {buffer.data_ptr() % ALIGNMENT} bytes past a multiple",
                "Slice it at a multiple of 256 bytes.",
            )


class Workspace(Mapping[str, torch.Tensor]):
    """The tensors of a layout in a buffer, by name: views that are made when they are asked for.

    Parameters
    ----------
    fields : mapping
        Of the layout.
    buffer : torch.Tensor
        Kept alive by the workspace.
    offset : int
        Bytes of the buffer before the first tensor.
    """

    __slots__ = ("_buffer", "_fields", "_offset", "_start")

    def __init__(self, fields: Mapping[str, _Field], buffer: torch.Tensor, offset: int) -> None:
        self._fields = fields
        self._buffer = buffer
        self._offset = offset
        self._start = buffer.data_ptr() + offset

    def address(self, name: str) -> int:
        """Where a tensor lies."""
        return self._start + self._fields[name].offset

    def __getitem__(self, name: str) -> torch.Tensor:
        field = self._fields[name]
        start = self._offset + field.offset
        return self._buffer[start : start + field.nbytes].view(field.dtype).view(field.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def allocate(nbytes: int, device: torch.device) -> torch.Tensor:
    """A buffer for layouts: ``uint8``, beginning at a multiple of 256 bytes.

    Examples
    --------
    >>> allocate(300, torch.device("cpu")).shape
    torch.Size([300])
    """
    if device.type != "cpu":
        return torch.empty(nbytes, dtype=torch.uint8, device=device)  # by the driver's own steps
    # The CPU allocator aligns to 64 bytes only; ask for the difference and start at the first multiple.
    buffer = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8)
    start = -buffer.data_ptr() % ALIGNMENT
    return buffer[start : start + nbytes]


def _aligned(nbytes: int) -> int:
    return (nbytes + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def _with_index(device: torch.device | str) -> torch.device:
    """Give ``cuda`` its current index: tensors always carry one."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _readable(nbytes: int) -> str:
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
