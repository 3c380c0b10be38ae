"""Layout of a step's tensors."""

from __future__ import annotations

import torch
from batch import StepBatch
from scheduler import Request, Work


def test_prefill_chunk_and_decode_in_one_step() -> None:
    decoding, chunked = Request(1, [10, 11, 12], 5), Request(2, [20, 21, 22, 23, 24, 25], 5)
    decoding.append(13)
    decoding.num_cached, decoding.pages = 3, [4, 0]
    chunked.num_cached, chunked.pages = 2, [7, 1]
    batch = StepBatch.build([Work(decoding, 1), Work(chunked, 3)], page_size=4, device=torch.device("cpu"))
    assert batch.tokens.tolist() == [13, 22, 23, 24]
    assert batch.qo_indptr.tolist() == [0, 1, 4]
    assert batch.kv_lens.tolist() == [4, 5]
    assert batch.kv_indptr.tolist() == [0, 2, 4]
    assert batch.kv_indices.tolist() == [4, 0, 7, 1]
    assert batch.kv_last_page_len.tolist() == [4, 1]
    assert batch.sampled_rows.tolist() == [0]  # the chunk is not the prompt's last
    assert all(tensor.dtype == torch.int32 for tensor in vars(batch).values())
