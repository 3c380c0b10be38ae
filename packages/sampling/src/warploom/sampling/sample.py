"""Drawing one token a row: the operator behind every ``*_sampling_from_logits`` and ``*_sampling_from_probs``.

All of them are one operator because a fused kernel does the whole chain in one launch: the chain (temperature, softmax,
filters in their order) is part of the problem, and a backend says which chains it knows.

What a chain keeps and how a token is drawn is stated in `warploom.sampling.steps`, where the random numbers come from in
`warploom.sampling.randomness`. One seed gives the same token in every backend, and from logits, from probabilities, or
filtered before the draw up to the rounding of the probabilities themselves (with top-p: where the first round decides).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from warploom.core.backends import Operator
from warploom.core.device import device_guard
from warploom.core.errors import ArgumentError
from warploom.core.settings import settings
from warploom.core.tensors import Checker
from warploom.core.torch_ops import register_op
from warploom.sampling.backends.cuda.sample import CudaSample
from warploom.sampling.backends.reference.sample import ReferenceSample
from warploom.sampling.parameters import FILTER_SCHEMA, FilterParameters, source_tensor
from warploom.sampling.problems.sample import SampleProblem
from warploom.sampling.randomness import RANDOM_SCHEMA, RandomState, random_state
from warploom.sampling.steps import Steps, check_steps, source_name

__all__ = ["DrawOptions", "Tokens", "draw", "require_no_nan"]

SAMPLE = Operator("sample", family="sampling", backends=(CudaSample(), ReferenceSample()))

Tokens = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class DrawOptions(NamedTuple):
    """The arguments that every sampling function ends with."""

    indices: torch.Tensor | None = None
    deterministic: bool = True
    generator: torch.Generator | None = None
    check_nan: bool = False
    seed: int | torch.Tensor | None = None
    offset: int | torch.Tensor | None = None
    return_valid: bool = False
    out: torch.Tensor | None = None
    backend: str = "auto"


def draw(op: str, source: torch.Tensor, steps: Steps, filters: Mapping[str, Any], options: DrawOptions) -> Tokens:
    """Check, describe and run a draw.

    Parameters
    ----------
    op : str
        Name of the public function, for messages.
    source : torch.Tensor
        Logits or probabilities ``[rows, vocab]``.
    steps : tuple of str
        The chain from `source` to the distribution, see `warploom.sampling.steps`.
    filters : mapping
        `temperature`, `top_k`, `top_p`, `min_p`, those that the chain needs: scalars or tensors.
    options : DrawOptions
        The rest.
    """
    check = Checker(op)
    check_steps(op, steps)
    source = source_tensor(check, source_name(steps), source)
    indices = check.tensor("indices", options.indices, "outputs", dtype=(torch.int32, torch.int64), optional=True)
    rows = check["batch"] if indices is None else check["outputs"]
    parameters = FilterParameters.of(check, rows, **filters)
    random = random_state(check, rows, options.seed, options.offset, options.generator, source.device)
    tokens = check.output("out", options.out, (rows,), torch.int32)
    valid = torch.empty(rows, dtype=torch.bool, device=source.device)
    if options.check_nan:
        require_no_nan(op, **{source_name(steps): source})
    chain = ",".join(steps)
    _sample(tokens, valid, source, indices, *parameters.flat(), *random, chain, options.deterministic, options.backend)
    return (tokens, valid) if options.return_valid else tokens


def require_no_nan(op: str, **tensors: torch.Tensor) -> None:
    """Raise if a tensor has a NaN; synchronises with the device."""
    for name, tensor in tensors.items():
        if bool(torch.isnan(tensor).any()):
            raise ArgumentError.of(op, name, "free of NaN", "a tensor with NaN", "Asked for by check_nan=True.")


def describe(source: torch.Tensor, rows: int, steps: Steps, deterministic: bool) -> SampleProblem:
    """The problem of drawing `rows` tokens from `source` through a chain."""
    where = SampleProblem.where(source)
    vocab, dtype = source.shape[1], source.dtype
    return SampleProblem(**where, batch=rows, vocab=vocab, dtype=dtype, steps=steps, deterministic=deterministic)


@register_op(
    "sample(Tensor(a!) tokens, Tensor(b!) valid, Tensor source, Tensor? indices, "
    f"{FILTER_SCHEMA}, {RANDOM_SCHEMA}, str steps, bool deterministic, str backend) -> ()"
)
def _sample(
    tokens: torch.Tensor, valid: torch.Tensor, source: torch.Tensor, indices: torch.Tensor | None, *rest: Any
) -> None:
    flat, random, (chain, deterministic, backend) = rest[:8], RandomState(*rest[8:12]), rest[12:]
    steps = tuple(chain.split(",")) if chain else ()
    problem = describe(source, tokens.shape[0], steps, deterministic)
    chosen = SAMPLE.select(problem, backend).backend
    if not problem.batch:
        return
    with device_guard(source):
        if indices is not None and settings.debug_checks:
            _check_indices(indices, source.shape[0])
        chosen.run(problem, tokens, valid, source, indices, FilterParameters.from_flat(*flat), random)


def _check_indices(indices: torch.Tensor, rows: int) -> None:
    wrong = (indices < 0) | (indices >= rows)
    if bool(wrong.any()):
        raise ArgumentError.of("sample", "indices", f"in [0, {rows})", str(indices[wrong][:8].tolist()))
