"""Filter chains and launch shapes as the GPU tests of several operators take them."""

import math

import torch

from warploom.sampling.backends.cuda.rows import RowShape
from warploom.sampling.steps import SOFTMAX


def chain_id(chain):
    return "-".join(chain) or "none"


def source_of(chain, logits):
    return logits if SOFTMAX in chain else torch.softmax(logits.float(), -1).to(logits.dtype)


def used_filters(chain, filters=None):
    """What a chain needs of the usual parameters, or of those given."""
    given = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02, **(filters or {})}
    return {name: given[name] for name in given if name in chain or (name == "temperature" and SOFTMAX in chain)}


def row_shapes(parts, vocab, itemsize):
    """Both ways for `parts` blocks to take a row, also those that no GPU would choose."""
    share_bytes = math.ceil(math.ceil(vocab * itemsize / 4096) / parts) * 4096
    return [RowShape(parts, True, share_bytes), RowShape(parts, False, 0)]
