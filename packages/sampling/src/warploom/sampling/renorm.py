"""Filtering distributions (top-p, top-k, min-p) and masking logits, without drawing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op
from warploom.sampling.backends.cuda.renorm import CudaRenorm, CudaTopKMask
from warploom.sampling.backends.reference.renorm import ReferenceRenorm, ReferenceTopKMask
from warploom.sampling.docstrings import shared_docs
from warploom.sampling.parameters import (
    FILTER_SCHEMA,
    FilterParameters,
    FloatLike,
    IntLike,
    RowParameter,
    int_parameter,
    source_tensor,
)
from warploom.sampling.problems.renorm import RenormProblem, TopKMaskProblem
from warploom.sampling.steps import SOFTMAX, Steps, check_steps, source_name

__all__ = ["min_p_renorm_probs", "renorm", "top_k_mask_logits", "top_k_renorm_probs", "top_p_renorm_probs"]

RENORM = Operator("renorm", family="sampling", backends=(CudaRenorm(), ReferenceRenorm()))
TOP_K_MASK = Operator("top_k_mask_logits", family="sampling", backends=(CudaTopKMask(), ReferenceTopKMask()))


@shared_docs
def top_p_renorm_probs(
    probs: torch.Tensor, top_p: FloatLike, *, out: torch.Tensor | None = None, backend: str = "auto"
) -> torch.Tensor:
    """Keep the most probable tokens that make up `top_p` of each row (the nucleus) and scale them to sum 1.

    Parameters
    ----------
    {probs}
    {top_p}
    {renorm_tail}

    Returns
    -------
    {renormed}

    Raises
    ------
    {errors}

    Notes
    -----
    Nucleus filtering is from A. Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019.

    Examples
    --------
    >>> import torch, warploom
    >>> warploom.top_p_renorm_probs(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), 0.75)
    tensor([[0.6667, 0.3333, 0.0000, 0.0000]])
    """
    return renorm("top_p_renorm_probs", probs, ("top_p",), {"top_p": top_p}, out=out, backend=backend)


@shared_docs
def top_k_renorm_probs(
    probs: torch.Tensor, top_k: IntLike, *, out: torch.Tensor | None = None, backend: str = "auto"
) -> torch.Tensor:
    """Keep the `top_k` most probable tokens of each row and scale them to sum 1.

    Parameters
    ----------
    {probs}
    {top_k}
    {renorm_tail}

    Returns
    -------
    {renormed}

    Raises
    ------
    {errors}

    Examples
    --------
    >>> import torch, warploom
    >>> warploom.top_k_renorm_probs(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), 3)  # the third place is shared
    tensor([[0.5000, 0.2500, 0.1250, 0.1250]])
    """
    return renorm("top_k_renorm_probs", probs, ("top_k",), {"top_k": top_k}, out=out, backend=backend)


@shared_docs
def min_p_renorm_probs(
    probs: torch.Tensor, min_p: FloatLike, *, out: torch.Tensor | None = None, backend: str = "auto"
) -> torch.Tensor:
    """Keep the tokens with at least `min_p` times the largest probability of their row and scale them to sum 1.

    Parameters
    ----------
    {probs}
    {min_p}
    {renorm_tail}

    Returns
    -------
    {renormed}

    Raises
    ------
    {errors}

    Notes
    -----
    The filter is from N. N. Minh et al., "Turning Up the Heat: Min-p Sampling", 2024.

    Examples
    --------
    >>> import torch, warploom
    >>> warploom.min_p_renorm_probs(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), 0.5)
    tensor([[0.6667, 0.3333, 0.0000, 0.0000]])
    """
    return renorm("min_p_renorm_probs", probs, ("min_p",), {"min_p": min_p}, out=out, backend=backend)


@shared_docs
def top_k_mask_logits(
    logits: torch.Tensor, top_k: IntLike, *, out: torch.Tensor | None = None, backend: str = "auto"
) -> torch.Tensor:
    """Set all but the `top_k` largest logits of each row to −inf.

    Parameters
    ----------
    {logits}
    {top_k}
    out : torch.Tensor, optional
        ``[rows, vocab]`` of the dtype of `logits` to write to; may be `logits` itself.
    backend : str
        "auto" or a name that `warploom explain top_k_mask_logits` lists.

    Returns
    -------
    torch.Tensor
        ``[rows, vocab]`` of the dtype of `logits`. A row with NaN comes back as it is.

    Raises
    ------
    {errors}

    Examples
    --------
    >>> import torch, warploom
    >>> warploom.top_k_mask_logits(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    tensor([[-inf, 3., 2.]])
    """
    check = Checker("top_k_mask_logits")
    logits = source_tensor(check, "logits", logits)
    parameter = int_parameter(check, "top_k", top_k, check["batch"])
    masked = check.output("out", out, tuple(logits.shape), logits.dtype)
    _top_k_mask_logits(masked, logits, *parameter, backend)
    return masked


def renorm(
    op: str,
    source: torch.Tensor,
    steps: Steps,
    filters: Mapping[str, Any],
    *,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Check, describe and run a chain to its distribution.

    Parameters
    ----------
    op : str
        Name of the public function, for messages.
    source : torch.Tensor
        Logits or probabilities ``[rows, vocab]``.
    steps : tuple of str
        The chain, see `warploom.sampling.steps`.
    filters : mapping
        `temperature`, `top_k`, `top_p`, `min_p`, those that the chain needs: scalars or tensors.
    out : torch.Tensor, optional
        Where to write; float32 for chains from logits, else of the dtype of `source`.
    backend : str
        "auto" or the name of a backend.
    """
    check = Checker(op)
    check_steps(op, steps)
    source = source_tensor(check, source_name(steps), source)
    parameters = FilterParameters.of(check, check["batch"], **filters)
    dtype = torch.float32 if SOFTMAX in steps else source.dtype
    probs = check.output("out", out, tuple(source.shape), dtype)
    _renorm(probs, source, *parameters.flat(), ",".join(steps), backend)
    return probs


def describe(source: torch.Tensor, steps: Steps, out_dtype: torch.dtype) -> RenormProblem:
    """The problem of running a chain on `source`."""
    (batch, vocab), where = source.shape, RenormProblem.where(source)
    return RenormProblem(**where, batch=batch, vocab=vocab, dtype=source.dtype, out_dtype=out_dtype, steps=steps)


def describe_mask(logits: torch.Tensor) -> TopKMaskProblem:
    """The problem of masking these logits."""
    batch, vocab = logits.shape
    return TopKMaskProblem(**TopKMaskProblem.where(logits), batch=batch, vocab=vocab, dtype=logits.dtype)


@register_op(f"renorm(Tensor(a!) out, Tensor source, {FILTER_SCHEMA}, str steps, str backend) -> ()")
def _renorm(out: torch.Tensor, source: torch.Tensor, *rest: Any) -> None:
    flat, (chain, backend) = rest[:8], rest[8:]
    problem = describe(source, tuple(chain.split(",")), out.dtype)
    chosen = RENORM.select(problem, backend).backend
    if problem.batch:
        with device_guard(source):
            chosen.run(problem, out, source, FilterParameters.from_flat(*flat))


@register_op("top_k_mask_logits(Tensor(a!) out, Tensor logits, Tensor? top_k, int top_k_value, str backend) -> ()")
def _top_k_mask_logits(
    out: torch.Tensor, logits: torch.Tensor, top_k: torch.Tensor | None, top_k_value: int, backend: str
) -> None:
    problem = describe_mask(logits)
    chosen = TOP_K_MASK.select(problem, backend).backend
    if problem.batch:
        with device_guard(logits):
            chosen.run(problem, out, logits, RowParameter(top_k, top_k_value))
