"""Token sampling: softmax with temperature, top-k, top-p and min-p filters and draws, speculative verification.

==========================  ==========================================================================
module                      what it does
==========================  ==========================================================================
``softmax``                 logits to probabilities
``sample_from_logits``      one token a row: softmax, filters and draw in one operator
``sample_from_probs``       the same from probabilities
``sample``                  the operator behind both, and how tokens are drawn
``renorm``                  filtered distributions, masked logits
``topk``                    the k largest values
``speculative``             verification of draft tokens
``randomness``              seeds, offsets, and the stream of random numbers
``steps``                   filter chains, the vocabulary that operators and `LogitsPipe` share
==========================  ==========================================================================

`warploom.logits_processor` composes these into pipes.
"""

from warploom.sampling.renorm import min_p_renorm_probs, top_k_mask_logits, top_k_renorm_probs, top_p_renorm_probs
from warploom.sampling.sample_from_logits import (
    min_p_sampling_from_logits,
    sampling_from_logits,
    top_k_sampling_from_logits,
    top_k_top_p_sampling_from_logits,
    top_p_sampling_from_logits,
)
from warploom.sampling.sample_from_probs import (
    min_p_sampling_from_probs,
    sampling_from_probs,
    top_k_sampling_from_probs,
    top_k_top_p_sampling_from_probs,
    top_p_sampling_from_probs,
)
from warploom.sampling.softmax import softmax
from warploom.sampling.speculative import chain_speculative_sampling
from warploom.sampling.topk import top_k

__all__ = [
    "chain_speculative_sampling",
    "min_p_renorm_probs",
    "min_p_sampling_from_logits",
    "min_p_sampling_from_probs",
    "sampling_from_logits",
    "sampling_from_probs",
    "softmax",
    "top_k",
    "top_k_mask_logits",
    "top_k_renorm_probs",
    "top_k_sampling_from_logits",
    "top_k_sampling_from_probs",
    "top_k_top_p_sampling_from_logits",
    "top_k_top_p_sampling_from_probs",
    "top_p_renorm_probs",
    "top_p_sampling_from_logits",
    "top_p_sampling_from_probs",
]
