"""Requests on an H200, as far as they decide which backend serves them: no GPU is needed for that."""

import torch

from warploom.attention.problems.attention import AttentionProblem


def decode_problem(**changes):
    """Of a token for each request, over a paged cache; with these fields in place of its own."""
    fields = {
        "phase": "decode", "kv_source": "paged", "page_size": 16,
        "dtype_q": torch.bfloat16, "dtype_kv": torch.bfloat16, "dtype_o": torch.bfloat16,
        "num_qo_heads": 32, "num_kv_heads": 8, "head_dim_qk": 128, "head_dim_vo": 128,
        "sm_count": 132, "device_type": "cuda", "arch": 90, "device_name": "NVIDIA H200",
    }  # fmt: skip
    return AttentionProblem(**fields | changes)
