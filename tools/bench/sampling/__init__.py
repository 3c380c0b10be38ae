"""Sampling: the sizes that have a target, and those between and beside them, against torch and FlashInfer.

"flat" logits are N(0, 1), "peaked" ones N(0, 36). Draws start from raw logits, temperature and softmax included, unless
the name says "from_probs". Peers draw with random numbers of their own: their tokens are not compared, their
distributions and values are the same.

===============  ================================================================
module           what is in it
===============  ================================================================
``inputs``       sizes, inputs, targets, and how results are checked
``peers``        how it is done with torch and FlashInfer
``draws``        draws from logits and from probabilities
``filters``      softmax, renormalisation, masks, top-k selection
``speculative``  verification of draft tokens
===============  ================================================================
"""

from .draws import BENCHMARKS as DRAWS
from .filters import BENCHMARKS as FILTERS
from .speculative import BENCHMARKS as SPECULATIVE

BENCHMARKS = [*DRAWS, *FILTERS, *SPECULATIVE]
