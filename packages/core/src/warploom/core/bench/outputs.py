"""Outputs under verification: poisoned before a call, cut to the rows that are checked after it."""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.testing.inputs import poison_like

__all__ = ["first_rows", "first_rows_of_work", "poison", "require_written"]


def poison(out: Any) -> None:
    """Overwrite outputs, a tensor or several, so that what a call leaves out is seen."""
    for tensor in _tensors(out):
        tensor.copy_(poison_like(tensor))


def first_rows(value: Any, rows: int) -> Any:
    """Cut a tensor, or every tensor of a sequence (the result is a tuple), to its first rows; leave the rest alone.

    Examples
    --------
    >>> first_rows((torch.arange(4), "name"), 2)
    (tensor([0, 1]), 'name')
    """
    if isinstance(value, torch.Tensor):
        return value[:rows] if value.dim() else value
    if isinstance(value, (tuple, list)):
        return tuple(first_rows(item, rows) for item in value)
    return value


def first_rows_of_work(work: Any, rows: int) -> Any:
    """A work like `work` with every tensor cut to its first rows; they share their memory."""
    return type(work)(**{name: first_rows(value, rows) for name, value in vars(work).items()})


def require_written(actual: Any, after: int) -> None:
    """Raise an AssertionError if one of the rows from `after` on is as `poison` left it; booleans can't tell."""
    for tensor in _tensors(actual):
        if tensor.dtype == torch.bool:
            continue
        rest = tensor[after:].flatten(1) if tensor.dim() > 1 else tensor[after:].unsqueeze(1)
        poisoned = poison_like(rest)
        missing = ((rest == poisoned) | ((rest != rest) & (poisoned != poisoned))).all(1)
        if bool(missing.any()):
            first = after + int(missing.nonzero()[0])
            raise AssertionError(f"{int(missing.sum())} of {len(tensor)} rows were not written, the first is {first}")


def _tensors(value: Any) -> list[torch.Tensor]:
    values = value if isinstance(value, (tuple, list)) else [value]
    return [one for one in values if isinstance(one, torch.Tensor)]
