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

**Draws** are exponential races (the Gumbel-max rule): tokens arrive one by one, each at an exponentially distributed time with
its weight as the rate, and the first is drawn. It is a token with probability proportional to its weight. Unlike inverting
the cumulative sum, a race does not depend on the order of an addition.

Times come in two heats, so that few of them have to be known. Tokens ``4 q ... 4 q + 3`` are quad ``q``. The first token of a
quad arrives at the quad's exponential number over its kept weight, because the earliest of exponential arrivals is an
exponential arrival at the sum of the rates. In a heat of their own, tokens run their own numbers over their weights: the
first of the heat is the quad's first, and the others arrive later by as much as they are behind it there, because what is
left of an exponential time is distributed like all of it. A quarter of the random numbers tell which token is first.

**Draws with top_p** (between 0 and 1) are of the first token that lies in the nucleus, among all tokens that the other filters
keep. The race need not know the nucleus: the few tokens that arrive first are looked up in it.
"""

from __future__ import annotations

from warploom.core.errors import ArgumentError

__all__ = [
    "FILTERS",
    "LARGEST_PROB",
    "SOFTMAX",
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
