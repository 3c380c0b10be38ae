"""Softmax with temperature."""

from __future__ import annotations

from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op
from warploom.sampling.backends.cuda.softmax import CudaSoftmax
from warploom.sampling.backends.reference.softmax import ReferenceSoftmax
from warploom.sampling.backends.torch.softmax import TorchSoftmax
from warploom.sampling.docstrings import shared_docs
from warploom.sampling.parameters import FloatLike, RowParameter, source_tensor, temperature_parameter
from warploom.sampling.problems.softmax import SoftmaxProblem

__all__ = ["softmax"]

SOFTMAX = Operator("softmax", family="sampling", backends=(CudaSoftmax(), TorchSoftmax(), ReferenceSoftmax()))


@shared_docs
def softmax(
    logits: torch.Tensor,
    temperature: FloatLike | None = None,
    *,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Turn logits into probabilities: ``exp(logits / temperature)`` over its sum, row by row.

    Sums are taken in float32, in an order that is the same on every run and does not depend on the other rows (only on
    the vocabulary, and on how the row lies in memory relative to a multiple of 16 bytes).

    Parameters
    ----------
    {logits}
    {temperature}
    out : torch.Tensor, optional
        float32 ``[rows, vocab]`` to write to, contiguous in its last dimension.
    backend : str
        "auto" or a name that `warploom explain softmax` lists.

    Returns
    -------
    torch.Tensor
        float32 ``[rows, vocab]``. A row that is all −inf gives zeros. A row with a NaN or +inf, or a bad temperature,
        is NaN throughout.

    Raises
    ------
    {errors}

    Notes
    -----
    The CUDA kernel reads each row once where a thread-block cluster holds it on chip, keeping the running maximum and
    sum of M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018.

    Examples
    --------
    >>> import torch, warploom
    >>> warploom.softmax(torch.tensor([[0.0, 0.0, -torch.inf, 0.0, 0.0]]))
    tensor([[0.2500, 0.2500, 0.0000, 0.2500, 0.2500]])
    """
    check = Checker("softmax")
    logits = source_tensor(check, "logits", logits)
    rows = check["batch"]
    parameter = temperature_parameter(check, temperature, rows)
    probs = check.output("out", out, (rows, check["vocab"]), torch.float32, contiguous="last")
    _softmax(probs, logits, *parameter, backend)
    return probs


def describe(logits: torch.Tensor) -> SoftmaxProblem:
    """The problem of a softmax of these logits."""
    batch, vocab = logits.shape
    return SoftmaxProblem(**SoftmaxProblem.where(logits), batch=batch, vocab=vocab, dtype=logits.dtype)


@register_op(
    "softmax(Tensor(a!) probs, Tensor logits, Tensor? temperature, float temperature_value, str backend) -> ()"
)
def _softmax(
    probs: torch.Tensor, logits: torch.Tensor, temperature: torch.Tensor | None, temperature_value: float, backend: str
) -> Any:
    problem = describe(logits)
    chosen = SOFTMAX.select(problem, backend).backend
    if problem.batch:
        with device_guard(logits):
            chosen.run(problem, probs, logits, RowParameter(temperature, temperature_value))
