"""The k largest values of each row and their indices."""

from __future__ import annotations

import numbers

import torch

from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op
from warploom.sampling.backends.cuda.topk import CudaTopK
from warploom.sampling.backends.reference.topk import ReferenceTopK
from warploom.sampling.backends.torch.topk import TorchTopK
from warploom.sampling.docstrings import shared_docs
from warploom.sampling.parameters import source_tensor
from warploom.sampling.problems.topk import TopKProblem

__all__ = ["top_k"]

TOP_K = Operator("top_k", family="sampling", backends=(CudaTopK(), TorchTopK(), ReferenceTopK()))


@shared_docs
def top_k(
    input: torch.Tensor,
    k: int,
    sorted: bool = False,
    deterministic: bool = False,
    *,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the `k` largest values of each row, as ``torch.topk`` does, with a stated rule for ties.

    NaN counts as larger than every number.

    Parameters
    ----------
    input : torch.Tensor
        ``[rows, n]``, float32, float16 or bfloat16, any strides; or any DLPack tensor.
    k : int
        How many, 1 to n.
    sorted : bool
        Largest first. Otherwise the order is not stated.
    deterministic : bool
        Of equal values take those with the smallest indices, and order them so with `sorted`. Without it, which of the
        values equal to the k-th largest are taken is not stated.
    out : tuple of torch.Tensor, optional
        Values (dtype of `input`) and indices (int64), ``[rows, k]``, to write to.
    backend : str
        "auto" or a name that `warploom explain top_k` lists.

    Returns
    -------
    values : torch.Tensor
        ``[rows, k]``, dtype of `input`.
    indices : torch.Tensor
        ``[rows, k]``, int64.

    Raises
    ------
    {errors}

    Examples
    --------
    >>> import torch, warploom
    >>> values, indices = warploom.top_k(torch.tensor([[1.0, 3.0, 2.0, 3.0]]), 2, sorted=True, deterministic=True)
    >>> values, indices
    (tensor([[3., 3.]]), tensor([[1, 3]]))
    """
    check = Checker("top_k")
    source = source_tensor(check, "input", input)
    rows, vocab = source.shape
    is_count = isinstance(k, numbers.Integral) and not isinstance(k, bool)
    check.require(is_count and 1 <= k <= vocab, "k", f"an integer from 1 to {vocab}", repr(k))
    check.require(out is None or len(out) == 2, "out", "a pair (values, indices)", out)
    values = check.output("out[0]", None if out is None else out[0], (rows, k), source.dtype)
    indices = check.output("out[1]", None if out is None else out[1], (rows, k), torch.int64)
    _top_k(values, indices, source, sorted, deterministic, backend)
    return values, indices


def describe(source: torch.Tensor, k: int, ordered: bool, deterministic: bool) -> TopKProblem:
    """The problem of selecting from `source`."""
    (batch, vocab), where = source.shape, TopKProblem.where(source)
    return TopKProblem(
        **where, batch=batch, vocab=vocab, k=k, dtype=source.dtype, ordered=ordered, deterministic=deterministic
    )


@register_op(
    "top_k(Tensor(a!) values, Tensor(b!) indices, Tensor input, bool ordered, bool deterministic, str backend) -> ()"
)
def _top_k(
    values: torch.Tensor,
    indices: torch.Tensor,
    source: torch.Tensor,
    ordered: bool,
    deterministic: bool,
    backend: str,
) -> None:
    problem = describe(source, values.shape[1], ordered, deterministic)
    chosen = TOP_K.select(problem, backend).backend
    if problem.batch:
        with device_guard(source):
            chosen.run(problem, values, indices, source)
