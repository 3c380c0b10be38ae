"""Drawing one token a row from logits: temperature, softmax, filters and draw in one operator."""

from __future__ import annotations

import torch

from warploom.sampling.docstrings import shared_docs
from warploom.sampling.parameters import FloatLike, IntLike
from warploom.sampling.sample import DrawOptions, Tokens, draw
from warploom.sampling.steps import Steps, chain_of_order

__all__ = [
    "sampling_from_logits",
    "top_p_sampling_from_logits",
    "top_k_sampling_from_logits",
    "min_p_sampling_from_logits",
    "top_k_top_p_sampling_from_logits",
]

_CHAINS: dict[str, Steps] = {"top_k_first": ("top_k", "softmax", "top_p"), "joint": ("softmax", "top_p", "top_k")}


@shared_docs
def sampling_from_logits(
    logits: torch.Tensor,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    return_valid: bool = False,
    *,
    temperature: FloatLike | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Draw one token a row with probability ``softmax(logits / temperature)`` (the Gumbel-max rule).

    Parameters
    ----------
    {logits}
    {tail}
    {temperature}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Notes
    -----
    Tokens race, first by fours and then one by one: with its own exponential number ``E`` each maximises ``log(weight) -
    log(E)``, and no normalisation is needed. See `warploom.sampling.steps`.

    Examples
    --------
    >>> import torch, warploom
    >>> logits = torch.tensor([[0.0, 3.0, 1.0]])
    >>> warploom.sampling_from_logits(logits, temperature=0.0)
    tensor([1], dtype=torch.int32)
    """
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw("sampling_from_logits", logits, ("softmax",), {"temperature": temperature}, options)


@shared_docs
def top_p_sampling_from_logits(
    logits: torch.Tensor,
    top_p: FloatLike,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    return_valid: bool = False,
    *,
    temperature: FloatLike | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Softmax, then draw one token from each row's nucleus: the most probable that make up `top_p` of it.

    Parameters
    ----------
    {logits}
    {top_p}
    {tail}
    {temperature}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Examples
    --------
    >>> import torch, warploom
    >>> logits = torch.tensor([[0.0, 3.0, 1.0]])
    >>> warploom.top_p_sampling_from_logits(logits, 0.5)
    tensor([1], dtype=torch.int32)
    """
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw(
        "top_p_sampling_from_logits",
        logits,
        ("softmax", "top_p"),
        {"top_p": top_p, "temperature": temperature},
        options,
    )


@shared_docs
def top_k_sampling_from_logits(
    logits: torch.Tensor,
    top_k: IntLike,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    return_valid: bool = False,
    *,
    temperature: FloatLike | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Draw one token a row from the softmax of its `top_k` largest logits.

    Parameters
    ----------
    {logits}
    {top_k}
    {tail}
    {temperature}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Examples
    --------
    >>> import torch, warploom
    >>> logits = torch.tensor([[0.0, 3.0, 1.0]])
    >>> warploom.top_k_sampling_from_logits(logits, 1)
    tensor([1], dtype=torch.int32)
    """
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw(
        "top_k_sampling_from_logits",
        logits,
        ("top_k", "softmax"),
        {"top_k": top_k, "temperature": temperature},
        options,
    )


@shared_docs
def min_p_sampling_from_logits(
    logits: torch.Tensor,
    min_p: FloatLike,
    indices: torch.Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    check_nan: bool = False,
    seed: int | torch.Tensor | None = None,
    offset: int | torch.Tensor | None = None,
    return_valid: bool = False,
    *,
    temperature: FloatLike | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Softmax, then draw one token from those with at least `min_p` times the largest probability.

    Parameters
    ----------
    {logits}
    {min_p}
    {tail}
    {temperature}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Examples
    --------
    >>> import torch, warploom
    >>> logits = torch.tensor([[0.0, 3.0, 1.0]])
    >>> warploom.min_p_sampling_from_logits(logits, 0.5)
    tensor([1], dtype=torch.int32)
    """
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw(
        "min_p_sampling_from_logits",
        logits,
        ("softmax", "min_p"),
        {"min_p": min_p, "temperature": temperature},
        options,
    )


@shared_docs
def top_k_top_p_sampling_from_logits(
    logits: torch.Tensor,
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
    temperature: FloatLike | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> Tokens:
    """Softmax, then draw one token a row from what top-k and top-p both keep.

    Parameters
    ----------
    {logits}
    {top_k}
    {top_p}
    {filter_apply_order}
    {tail}
    {temperature}

    Returns
    -------
    {tokens}

    Raises
    ------
    {errors}

    Examples
    --------
    >>> import torch, warploom
    >>> logits = torch.tensor([[0.0, 3.0, 1.0]])
    >>> warploom.top_k_top_p_sampling_from_logits(logits, 2, 0.5)
    tensor([1], dtype=torch.int32)
    """
    steps = chain_of_order("top_k_top_p_sampling_from_logits", filter_apply_order, _CHAINS)
    options = DrawOptions(indices, deterministic, generator, check_nan, seed, offset, return_valid, out, backend)
    return draw(
        "top_k_top_p_sampling_from_logits",
        logits,
        steps,
        {"top_k": top_k, "top_p": top_p, "temperature": temperature},
        options,
    )
