"""Tensor arguments: DLPack inputs and checks by named dimensions.

A `Checker` lives for one call. Each dimension name is bound by the first tensor that has it and checked on the others,
so that a mismatch is reported with both tensors' names.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, overload

import torch

from warploom.core.errors import ArgumentError

__all__ = ["Checker", "as_dtype", "as_tensor", "as_tensors", "have_unit_strides"]


def as_tensor(value: Any, op: str = "as_tensor", name: str = "value") -> torch.Tensor:
    """Take a torch tensor as it is, or wrap any ``__dlpack__`` tensor (NumPy, CuPy, JAX ...) without a copy."""
    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "__dlpack__"):
        try:
            return torch.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            # NumPy exports no read-only array through DLPack; torch can still view it, and inputs are never written.
            if type(value).__module__ == "numpy" and getattr(value, "ndim", None) is not None:
                return torch.from_numpy(value.copy())
            raise ArgumentError.of(
                op, name, "a tensor that DLPack can pass on", type(value).__name__, str(error)
            ) from error
    raise ArgumentError.of(
        op, name, "a torch tensor or a DLPack tensor", type(value).__name__, "Wrap it with torch.as_tensor(...)."
    )


def as_tensors(op: str, **values: Any) -> list[Any]:
    """`as_tensor` of each value by its name; None stays None.

    Examples
    --------
    >>> import numpy as np
    >>> as_tensors("mm", a=np.zeros(2), bias=None)
    [tensor([0., 0.], dtype=torch.float64), None]
    """
    return [value if value is None else as_tensor(value, op, name) for name, value in values.items()]


def as_dtype(value: torch.dtype | str, op: str, name: str) -> torch.dtype:
    """A torch dtype from itself or its name (``"float16"``, ``"torch.float16"``)."""
    if isinstance(value, torch.dtype):
        return value
    found = getattr(torch, str(value).removeprefix("torch."), None) if isinstance(value, str) else None
    if not isinstance(found, torch.dtype):
        raise ArgumentError.of(op, name, "a torch dtype or its name, such as 'bfloat16'", repr(value))
    return found


def have_unit_strides(*tensors: torch.Tensor) -> bool:
    """Whether elements along the last dimension of each are neighbours in memory, or there is no more than one.

    Examples
    --------
    >>> x = torch.zeros(4, 8)
    >>> have_unit_strides(x), have_unit_strides(x, x.T), have_unit_strides(x[:, 3:4])
    (True, False, True)
    """
    return all(tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 for tensor in tensors)


def _parse(dims: str) -> tuple[tuple[str | int | None, ...], str | None]:
    """Split ``"*lead heads 2 _"`` into names, sizes and None for anything, and the name of the leading group."""
    names = tuple(dims.split())
    lead = names[0][1:] if names and names[0].startswith("*") else None
    fixed = names if lead is None else names[1:]
    return tuple(None if dim == "_" else int(dim) if dim.isdigit() else dim for dim in fixed), lead


_parse_once = functools.lru_cache(1024)(_parse)  # torch.compile warns of caches in what it traces


class Checker:
    """Checks the tensors of one call and collects their dimensions.

    Parameters
    ----------
    op : str
        Name of the operator, for messages.

    Examples
    --------
    >>> import torch
    >>> check = Checker("mm")
    >>> a = check.tensor("a", torch.zeros(2, 8), "m k", dtype=torch.float32)
    >>> b = check.tensor("b", torch.zeros(8, 3), "k n", dtype=torch.float32)
    >>> check["m"], check["n"]
    (2, 3)
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.device: torch.device | None = None
        self._first = ""  # the tensor that set the device
        self._dims: dict[str, int] = {}
        self._owner: dict[str, str] = {}

    def __getitem__(self, dim: str) -> int:
        return self._dims[dim]

    def require(self, condition: bool, name: str, expected: str, got: object, hint: str = "") -> None:
        """Raise an `ArgumentError` about argument `name` unless `condition` holds."""
        if not condition:
            raise ArgumentError.of(self.op, name, expected, got, hint)

    def bind(self, dim: str, size: int, owner: str) -> None:
        """Bind a named dimension to a size, or check it against the size bound before."""
        if dim not in self._dims:
            self._dims[dim] = size
            self._owner[dim] = owner
        elif self._dims[dim] != size:
            raise ArgumentError.of(
                self.op, owner, f"of {dim} = {self._dims[dim]} (from `{self._owner[dim]}`)", f"{dim} = {size}"
            )

    @overload
    def tensor(
        self,
        name: str,
        value: Any,
        dims: str,
        *,
        dtype: Any = ...,
        contiguous: Any = ...,
        device: Any = ...,
        optional: Literal[False] = ...,
    ) -> torch.Tensor: ...
    @overload
    def tensor(
        self,
        name: str,
        value: Any,
        dims: str,
        *,
        dtype: Any = ...,
        contiguous: Any = ...,
        device: Any = ...,
        optional: bool,
    ) -> torch.Tensor | None: ...
    def tensor(
        self,
        name: str,
        value: Any,
        dims: str,
        *,
        dtype: torch.dtype | tuple[torch.dtype, ...] | None = None,
        contiguous: Literal["last", "all"] | None = None,
        device: Literal["same", "any"] = "same",
        optional: bool = False,
    ) -> torch.Tensor | None:
        """Check one tensor and bind its dimensions.

        Parameters
        ----------
        name, value
            The argument's name and what the caller passed: a tensor, or anything with ``__dlpack__``.
        dims : str
            Space-separated dimensions: a name, a literal size (``2``), ``_`` for anything, and first ``*name`` for any
            number of leading dimensions (bound to their product).
        dtype : torch.dtype or tuple, optional
            The accepted dtypes; None accepts any.
        contiguous : {"last", "all"}, optional
            Demand a unit stride in the last dimension, or a contiguous tensor.
        device : {"same", "any"}
            "same": all such tensors of a call are on one device.
        optional : bool
            Accept None and return it.

        Raises
        ------
        ArgumentError
            Naming the argument, what was expected and what came.
        """
        if value is None and optional:
            return None
        tensor = as_tensor(value, self.op, name)
        if dtype is not None:
            self._check_dtype(name, tensor, dtype)
        self._check_shape(name, tensor, dims)
        if device == "same":
            self._check_device(name, tensor)
        if contiguous == "all":
            self.require(
                tensor.is_contiguous(), name, "contiguous", f"strides {tuple(tensor.stride())}", "Call .contiguous()."
            )
        elif contiguous == "last" and tensor.dim() and tensor.shape[-1] > 1:
            self.require(
                tensor.stride(-1) == 1,
                name,
                "contiguous in its last dimension",
                f"strides {tuple(tensor.stride())}",
                "Call .contiguous().",
            )
        return tensor

    def output(
        self,
        name: str,
        value: Any,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        contiguous: Literal["last", "all"] | None = None,
    ) -> torch.Tensor:
        """Check a caller's output buffer, or allocate one on the device of the inputs when it is None."""
        if value is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        tensor = as_tensor(value, self.op, name)
        self.require(
            tuple(tensor.shape) == tuple(shape), name, f"of shape {tuple(shape)}", f"shape {tuple(tensor.shape)}"
        )
        return self.tensor(name, tensor, " ".join("_" * len(shape)), dtype=dtype, contiguous=contiguous)

    def _check_dtype(self, name: str, tensor: torch.Tensor, dtype: torch.dtype | tuple[torch.dtype, ...]) -> None:
        accepted = dtype if isinstance(dtype, tuple) else (dtype,)
        if tensor.dtype not in accepted:
            expected = " or ".join(str(d).removeprefix("torch.") for d in accepted)
            raise ArgumentError.of(self.op, name, f"of dtype {expected}", str(tensor.dtype).removeprefix("torch."))

    def _check_shape(self, name: str, tensor: torch.Tensor, dims: str) -> None:
        names, lead = (_parse if torch.compiler.is_compiling() else _parse_once)(dims)
        shape = tensor.shape
        rank_fits = len(shape) >= len(names) if lead is not None else len(shape) == len(names)
        if not rank_fits:
            layout = ", ".join(dims.split())
            raise ArgumentError.of(self.op, name, f"a tensor [{layout}]", f"{len(shape)}-D of shape {tuple(shape)}")
        first = len(shape) - len(names)
        if lead:
            product = 1
            for size in shape[:first]:
                product *= size
            self.bind(lead, product, name)
        for dim, size in zip(names, shape[first:], strict=True):
            if isinstance(dim, str):
                self.bind(dim, size, name)
            elif dim is not None and size != dim:
                raise ArgumentError.of(self.op, name, f"[{', '.join(dims.split())}]", f"shape {tuple(shape)}")

    def _check_device(self, name: str, tensor: torch.Tensor) -> None:
        if self.device is None:
            self.device, self._first = tensor.device, name
        elif tensor.device != self.device:
            raise ArgumentError.of(
                self.op,
                name,
                f"on {self.device} like `{self._first}`",
                f"a tensor on {tensor.device}",
                f"Move it with .to({str(self.device)!r}).",
            )
