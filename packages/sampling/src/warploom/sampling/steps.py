"""The vocabulary of filter chains.

A sampling request is a chain of steps from its input to a distribution, written as a tuple such as
``("top_k", "softmax", "top_p")``: mask the logits to the 50 largest, take the softmax, keep the nucleus. One operator
(`warploom.sampling.sample`, or `warploom.sampling.renorm` when the distribution itself is wanted) serves every chain,
and a backend says in `supports` which chains it knows. The input is logits if the chain has a ``"softmax"``, else it
is probabilities.
"""

from __future__ import annotations

from warploom.core.errors import ArgumentError

__all__ = ["FILTERS", "SOFTMAX", "Steps", "chain_of_order", "check_steps", "source_name"]

Steps = tuple[str, ...]

SOFTMAX = "softmax"
FILTERS = ("top_k", "top_p", "min_p")
LOGITS_FILTERS = ("top_k",)  # the others weigh probabilities against each other and need the softmax first


def check_steps(op: str, steps: Steps) -> None:
    """Raise an `ArgumentError` unless `steps` is a chain that has a meaning."""
    known = all(step == SOFTMAX or step in FILTERS for step in steps)
    before = steps[: steps.index(SOFTMAX)] if SOFTMAX in steps else ()
    if not known or len(set(steps)) < len(steps) or not all(step in LOGITS_FILTERS for step in before):
        expected = "distinct steps of softmax, top_k, top_p, min_p, with at most top_k before softmax"
        raise ArgumentError.of(op, "steps", expected, repr(steps))


def source_name(steps: Steps) -> str:
    """Name of the chain's input: ``"logits"`` or ``"probs"``."""
    return "logits" if SOFTMAX in steps else "probs"


def chain_of_order(op: str, filter_apply_order: str, chains: dict[str, Steps]) -> Steps:
    """The chain of a `filter_apply_order`.

    Keeping the top k of a nucleus is the same as taking both of the whole distribution: either keeps what is at or
    above a threshold, so the stricter threshold decides. "joint" is therefore the chain with top-p first.
    """
    if filter_apply_order not in chains:
        expected = " or ".join(map(repr, chains))
        raise ArgumentError.of(op, "filter_apply_order", expected, repr(filter_apply_order))
    return chains[filter_apply_order]
