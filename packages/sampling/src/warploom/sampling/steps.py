"""The vocabulary of filter chains, and what they mean.

A sampling request is a chain of steps from its input to a distribution, written as a tuple such as
``("top_k", "softmax", "top_p")``: mask the logits to the 50 largest, take the softmax, keep the nucleus. One operator
(`warploom.sampling.sample`, or `warploom.sampling.renorm` when the distribution itself is wanted) serves every chain,
and a backend says in `supports` which chains it knows. The input is logits if the chain has a ``"softmax"``, else it
is probabilities.

**Weights.** A chain never changes what tokens weigh, it only leaves fewer of them. The *value* of a token is its logit, or
its probability (negative ones count as 0), in float32. Probabilities weigh what they are, logits ``exp2((value - largest
value) * log2(e) / temperature)``, in float64. A row is bad if it has NaN, or infinities (logits of −inf are tokens that can
not be drawn; probabilities above 2**120 count as infinite), or nothing to draw, or a bad temperature.

**Filters** keep values at or above a threshold, so equal ones stay or go together, and are ordered by value:

* top_k: the k-th largest value of the row;
* min_p: the smallest value that weighs at least that share of the largest;
* top_p: the largest value that together with those above it reaches a share p of the mass of what the steps before have
  left. Masses are sums of *units*: weights as multiples of 2**-42 of the largest (of probabilities: of the power of two
  above it), rounded down. Sums of units are exact, whatever their order, so a row's outcome depends on nothing around it.

The distribution at the end is ``weight / sum of the kept weights``.

**Draws** are exponential races (the Gumbel-max rule) in two heats. Tokens ``4 q ... 4 q + 3`` are quad ``q``. Each quad has an
exponential number and arrives at that number over its kept weight; the tokens of the quad that arrives first race each other
with numbers of their own. A token is then drawn with probability proportional to its weight, because the earliest of
exponential arrivals is an exponential arrival at the sum of the rates; a quarter of the random numbers decide. Unlike
inverting the cumulative sum, a race does not depend on the order of an addition.

**Draws with top_p** (between 0 and 1) take place among all tokens that the other filters keep. A token outside the nucleus is
rejected, together with all values not above its own, and drawn again with new numbers: up to `TOP_P_ROUNDS` times, then among
the tokens of the nucleus. One sum over the row decides about a token, where finding the nucleus would take a selection; the
distribution is the same.
"""

from __future__ import annotations

from warploom.core.errors import ArgumentError

__all__ = [
    "FILTERS",
    "LARGEST_PROB",
    "SOFTMAX",
    "TOP_P_ROUNDS",
    "UNIT_BITS",
    "Steps",
    "chain_of_order",
    "check_steps",
    "source_name",
]

Steps = tuple[str, ...]

SOFTMAX = "softmax"
FILTERS = ("top_k", "top_p", "min_p")
UNIT_BITS = 42
LARGEST_PROB = 2.0**120
TOP_P_ROUNDS = 3
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
