"""Text that the docstrings of several operators share, written once."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import TypeVar

__all__ = ["shared_docs"]

_Function = TypeVar("_Function", bound=Callable[..., object])

_TEMPERATURE = """
temperature : float or torch.Tensor, optional
    Divides the logits: a number, or one a row, ``[rows]`` or ``[1]``. 0 stands for its limit, equal shares for the
    largest logits; infinity for equal shares of all that are not −inf; a negative or NaN one makes the row bad."""

_TOP_K = """
top_k : int or torch.Tensor
    Tokens to keep: a number, or int32 or int64 ``[rows]`` or ``[1]``. Tokens equal to the k-th largest are kept too.
    Below 1 or above the vocabulary's size it keeps all."""

_TOP_P = """
top_p : float or torch.Tensor
    Share of the row's mass to keep: a number, or one a row, ``[rows]`` or ``[1]``, taken as float32. A token is kept if
    the tokens of larger logits or probabilities have less than this share, so equal ones stay or go together. At 0 and
    below the largest remain; 1, above, and NaN keep all."""

_MIN_P = """
min_p : float or torch.Tensor
    Least probability to keep, as a share of the row's largest: a number, or one a row, ``[rows]`` or ``[1]``. Tokens
    exactly at the threshold (of probabilities the product rounded to float32) are kept. Above 1 it counts as 1; 0, below,
    and NaN keep all."""

_FILTER_ORDER = """
filter_apply_order : {"top_k_first", "joint"}
    "top_k_first": `top_p` is a share of what top-k has kept. "joint": both are taken of the whole distribution and a
    token must pass both."""

_PROBS = """
probs : torch.Tensor
    ``[rows, vocab]``, float32, float16 or bfloat16, any strides; or any DLPack tensor. A row is taken relative to its
    sum; negative entries count as 0, those above 2**120 as infinite."""

_LOGITS = """
logits : torch.Tensor
    ``[rows, vocab]``, float32, float16 or bfloat16, any strides; or any DLPack tensor. −inf marks tokens that can not
    be drawn."""

_DETERMINISTIC = """
deterministic : bool
    Demand that a row's token does not depend on the rest of the batch. False allows a backend to trade that for speed.
generator : torch.Generator, optional
    Where the seed comes from when there is no `seed`; default: the default generator of the device."""

_CHECK_NAN = """
check_nan : bool
    Raise if there is a NaN. This synchronises with the device."""

_SEED = """
seed : int or torch.Tensor, optional
    64 bits: a number, or int64 ``[1]`` on the device, for all rows; or int64 ``[rows]``, which makes a row's token
    independent of its place in the batch.
offset : int or torch.Tensor, optional
    64 bits that tell calls with the same seed apart: a number (default 0), or int64 ``[1]`` or ``[rows]`` on the
    device, which the call advances by 1 in place, so that each replay of a CUDA graph draws anew."""

_TAIL = f"""
indices : torch.Tensor, optional
    int32 or int64 ``[n]``: output ``i`` draws from row ``indices[i]``. There are then n outputs, and "a row" in the
    other arguments means an output. An index out of range makes its output bad (with debug checks: an error).
{_DETERMINISTIC.strip()}
{_CHECK_NAN.strip()}
{_SEED.strip()}
return_valid : bool
    Return which rows had a distribution, too.
out : torch.Tensor, optional
    int32 ``[rows]`` to write the tokens to.
backend : str
    "auto" or a name that `warploom explain sample` lists."""

_SPECULATIVE_TAIL = f"""
{_DETERMINISTIC.strip()}
{_SEED.strip()}
{_CHECK_NAN.strip()}
return_valid : bool
    Return `valid`, too.
out : torch.Tensor, optional
    int32 ``[batch, n + 1]`` to write the tokens to.
backend : str
    "auto" or a name that `warploom explain chain_speculative_sampling` lists."""

_TOKENS = """
tokens : torch.Tensor
    int32 ``[rows]``. A bad row (NaN or infinite, or nothing that can be drawn) gives token 0.
valid : torch.Tensor
    bool ``[rows]``, with `return_valid`: false for bad rows."""

_ERRORS = """
ArgumentError
    An argument has a wrong type, dtype, shape or device; or there is a NaN and `check_nan` is set.
UnsupportedError
    The named backend can't serve the request; the message says who can."""

_RENORM_TAIL = """
out : torch.Tensor, optional
    ``[rows, vocab]`` of the dtype of `probs` to write to; may be `probs` itself.
backend : str
    "auto" or a name that `warploom explain renorm` lists."""

_RENORMED = """
torch.Tensor
    ``[rows, vocab]`` of the dtype of `probs`, 0 for tokens that were not kept. A row without positive entries gives
    zeros, one with NaN or infinity is NaN throughout."""

_PARTS = {
    "temperature": _TEMPERATURE,
    "top_k": _TOP_K,
    "top_p": _TOP_P,
    "min_p": _MIN_P,
    "filter_apply_order": _FILTER_ORDER,
    "probs": _PROBS,
    "logits": _LOGITS,
    "tail": _TAIL,
    "speculative_tail": _SPECULATIVE_TAIL,
    "renorm_tail": _RENORM_TAIL,
    "renormed": _RENORMED,
    "tokens": _TOKENS,
    "errors": _ERRORS,
}


_PLACE = re.compile(r"^( *)\{(\w+)\}$", re.MULTILINE)


def shared_docs(function: _Function) -> _Function:
    """Replace lines such as ``{tail}`` of a docstring by the shared text of that name."""
    if function.__doc__:  # None under python -OO
        function.__doc__ = _PLACE.sub(lambda m: textwrap.indent(_PARTS[m[2]].strip("\n"), m[1]), function.__doc__)
    return function
