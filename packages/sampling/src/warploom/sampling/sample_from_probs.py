"""Drawing one token a row from probabilities."""

from __future__ import annotations

import torch

from warploom.sampling.docstrings import shared_docs
from warploom.sampling.parameters import FloatLike, IntLike
from warploom.sampling.sample import DrawOptions, Tokens, draw
from warploom.sampling.steps import Steps, chain_of_order

__all__ = [
    "sampling_from_probs",
    "top_p_sampling_from_probs",
    "top_k_sampling_from_probs",
    "min_p_sampling_from_probs",
    "top_k_top_p_sampling_from_probs",
]

_CHAINS: dict[str, Steps] = {"top_k_first": ("top_k", "top_p"), "joint": ("top_p", "top_k")}


@shared_docs
def sampling_from_probs(
    probs: torch.Tensor,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    return_valid: bool = False,
    *,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Draw one token from each row of probabilities.

    Parameters
    ----------
    {probs}
    {tail}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Notes
    -----
    The draw is an exponential race, see `warploom.sampling.steps`: with the same seed it gives the token that
    `sampling_from_logits` gives for the logits of these probabilities.

    Examples
    --------
    >>> import torch, warploom
    >>> probs = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    >>> warploom.sampling_from_probs(probs, seed=1)
    tensor([1, 2], dtype=torch.int32)
    """
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw("sampling_from_probs", probs, (), {}, options)


@shared_docs
def top_p_sampling_from_probs(
    probs: torch.Tensor,
    top_p: FloatLike,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    return_valid: bool = False,
    *,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Draw one token from each row's nucleus: the most probable tokens that make up `top_p` of it.

    Parameters
    ----------
    {probs}
    {top_p}
    {tail}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Notes
    -----
    A. Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019.

    Examples
    --------
    >>> import torch, warploom
    >>> probs = torch.tensor([[0.1, 0.6, 0.3]])
    >>> warploom.top_p_sampling_from_probs(probs, 0.5)
    tensor([1], dtype=torch.int32)
    """
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw("top_p_sampling_from_probs", probs, ("top_p",), {"top_p": top_p}, options)


@shared_docs
def top_k_sampling_from_probs(
    probs: torch.Tensor,
    top_k: IntLike,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    return_valid: bool = False,
    *,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Draw one token from the `top_k` most probable of each row.

    Parameters
    ----------
    {probs}
    {top_k}
    {tail}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Examples
    --------
    >>> import torch, warploom
    >>> probs = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    >>> warploom.top_k_sampling_from_probs(probs, torch.tensor([1, 1]))
    tensor([1, 0], dtype=torch.int32)
    """
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw("top_k_sampling_from_probs", probs, ("top_k",), {"top_k": top_k}, options)


@shared_docs
def min_p_sampling_from_probs(
    probs: torch.Tensor,
    min_p: FloatLike,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    return_valid: bool = False,
    *,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Draw one token from those with at least `min_p` times the largest probability of their row.

    Parameters
    ----------
    {probs}
    {min_p}
    {tail}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Notes
    -----
    N. N. Minh et al., "Turning Up the Heat: Min-p Sampling", 2024.

    Examples
    --------
    >>> import torch, warploom
    >>> probs = torch.tensor([[0.1, 0.6, 0.3]])
    >>> warploom.min_p_sampling_from_probs(probs, 0.7)
    tensor([1], dtype=torch.int32)
    """
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw("min_p_sampling_from_probs", probs, ("min_p",), {"min_p": min_p}, options)


@shared_docs
def top_k_top_p_sampling_from_probs(
    probs: torch.Tensor,
    top_k: IntLike,
    top_p: FloatLike,
    indices: torch.Tensor | None = None,
    filter_apply_order: str = "top_k_first",
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    return_valid: bool = False,
    *,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Draw one token a row from what top-k and top-p both keep.

    Parameters
    ----------
    {probs}
    {top_k}
    {top_p}
    {filter_apply_order}
    {tail}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Examples
    --------
    >>> import torch, warploom
    >>> probs = torch.tensor([[0.1, 0.6, 0.3]])
    >>> warploom.top_k_top_p_sampling_from_probs(probs, 2, 0.6)
    tensor([1], dtype=torch.int32)
    """
    steps = chain_of_order("top_k_top_p_sampling_from_probs", filter_apply_order, _CHAINS)
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw("top_k_top_p_sampling_from_probs", probs, steps, {"top_k": top_k, "top_p": top_p}, options)
