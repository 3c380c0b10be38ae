"""The forward pass of one step through warploom's operators: all requests of the step at once, over the paged cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from batch import StepBatch
from model import ModelConfig
from timing import OperatorTimer
from torch import Tensor
from weights import LayerWeights, Shard, Weights

from warploom.attention import (
    BatchAttention,
    append_paged_kv_cache,
    apply_rope_pos_ids,
    get_batch_indices_positions,
)
from warploom.comm import Communicator, all_reduce
from warploom.gemm import grouped_mm_bf16, mm_bf16


class StepOutput(NamedTuple):
    """Float32 `logits` `[samples, vocab_size]`, and the `experts` `[nnz, top_k]` that each mixture layer chose."""

    logits: Tensor
    experts: list[Tensor]


class Positions(NamedTuple):
    """Request and place in it of every new token, both `[nnz]`."""

    batch_indices: Tensor
    positions: Tensor


class Engine:
    """Weights, paged cache and the plan of the attention.

    Parameters
    ----------
    config, state
        What `load_checkpoint` returns.
    num_pages, page_size : int
        Shape of the cache of each layer, `[num_pages, 2, page_size, kv_heads, head_dim]` bfloat16.
    device : torch.device
        Where everything lives.
    communicator : Communicator, optional
        Splits heads and feed-forward units over its ranks.
    """

    def __init__(
        self,
        config: ModelConfig,
        state: dict[str, Tensor],
        num_pages: int,
        page_size: int,
        device: torch.device,
        communicator: Communicator | None = None,
    ) -> None:
        shard = Shard(communicator.rank, communicator.size) if communicator else Shard()
        self.config = config
        self.device = device
        self.num_pages = num_pages
        self.page_size = page_size
        self.communicator = communicator
        self.timer = OperatorTimer(device)
        self.weights = Weights.load(config, state, shard, device)
        self.num_qo_heads = config.num_qo_heads // shard.world_size
        self.num_kv_heads = config.num_kv_heads // shard.world_size
        cache_shape = (num_pages, 2, page_size, self.num_kv_heads, config.head_dim)
        self.caches = [torch.zeros(cache_shape, dtype=torch.bfloat16, device=device) for _ in range(config.num_layers)]
        self._attention = BatchAttention(device=device)

    @torch.no_grad()
    def step(self, batch: StepBatch) -> StepOutput:
        """Write the new tokens into the cache and return the logits of `batch.sampled_rows`."""
        places = self._plan(batch)
        x = F.embedding(batch.tokens, self.weights.embedding)  # [nnz, hidden_size] float32, the residual stream
        chosen = []
        for layer, cache in zip(self.weights.layers, self.caches, strict=True):
            x = x + self._attend(x, layer, cache, batch, places)
            delta, experts = self._feed_forward(x, layer)
            x = x + delta
            chosen.extend(experts)
        last = self._norm(x[batch.sampled_rows], self.weights.norm)
        return StepOutput(self.timer.call(mm_bf16, last, self.weights.head.t(), out_dtype=torch.float32), chosen)

    def _plan(self, batch: StepBatch) -> Positions:
        """What all layers share: the attention's schedule, and where the new keys and values go."""
        with self.timer.measure("BatchAttention.plan", operators=("attention",)):
            self._attention.plan(
                batch.qo_indptr,
                batch.kv_lens,
                batch.kv_indices,
                self.num_qo_heads,
                self.num_kv_heads,
                self.config.head_dim,
                self.config.head_dim,
                dtype_q=torch.bfloat16,
                dtype_kv=torch.bfloat16,
                dtype_o=torch.bfloat16,
                page_size=self.page_size,
                causal=True,
            )
        nnz = len(batch.tokens)
        return Positions(*self.timer.call(get_batch_indices_positions, batch.qo_indptr, batch.kv_lens, nnz))

    def _attend(self, x: Tensor, layer: LayerWeights, cache: Tensor, batch: StepBatch, places: Positions) -> Tensor:
        head_dim = self.config.head_dim
        qkv = self.timer.call(mm_bf16, self._norm(x, layer.attention_norm), layer.qkv.t())
        heads = qkv.view(len(x), -1, head_dim)  # [nnz, qo_heads + 2 kv_heads, head_dim]
        q, k, v = heads.split((self.num_qo_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        theta = self.config.rope_theta
        q, k = self.timer.call(apply_rope_pos_ids, q, k, places.positions, rope_theta=theta, operator="apply_rope")
        self.timer.call(
            append_paged_kv_cache,
            k,
            v,
            places.batch_indices,
            places.positions,
            cache,
            batch.kv_indices,
            batch.kv_indptr,
            batch.kv_last_page_len,
        )
        with self.timer.measure("BatchAttention.run", operators=("attention",)):
            o, _ = self._attention.run(q, cache)
        return self._reduce(self.timer.call(mm_bf16, o.flatten(1), layer.out.t()))

    def _feed_forward(self, x: Tensor, layer: LayerWeights) -> tuple[Tensor, list[Tensor]]:
        """The output, and the chosen experts if this is a mixture layer."""
        normed = self._norm(x, layer.ffn_norm)
        if layer.router is not None:
            y, experts = self._mixture(normed, layer, layer.router)
            return self._reduce(y), [experts]
        hidden = self._swiglu(self.timer.call(mm_bf16, normed, layer.gate_up.t()))
        return self._reduce(self.timer.call(mm_bf16, hidden, layer.down.t())), []

    def _mixture(self, x: Tensor, layer: LayerWeights, router: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens sorted by expert, two grouped products, and the weighted sum in the tokens' own order."""
        top_k = self.config.top_k
        with self.timer.measure("routing", backend="torch"):
            scores, experts = F.linear(x.float(), router).topk(top_k, dim=-1)  # [nnz, top_k]
            gates = scores.softmax(-1)
            order = experts.flatten().argsort(stable=True)
            bounds = torch.arange(self.config.num_experts + 1, device=x.device)
            m_indptr = torch.searchsorted(experts.flatten()[order], bounds).int()  # the groups stay on the device
            sorted_x = x[order // top_k]
        hidden = self._swiglu(self.timer.call(grouped_mm_bf16, sorted_x, layer.gate_up, m_indptr))
        y = self.timer.call(grouped_mm_bf16, hidden, layer.down, m_indptr)
        with self.timer.measure("routing", backend="torch"):
            by_token = torch.empty_like(y).index_copy(0, order, y).view(len(x), top_k, -1)
            mixed = (by_token * gates[..., None]).sum(1).to(torch.bfloat16)
        return mixed, experts

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        with self.timer.measure("rms_norm", backend="torch"):
            return F.rms_norm(x, (len(weight),), weight, self.config.norm_eps).to(torch.bfloat16)

    def _swiglu(self, gate_up: Tensor) -> Tensor:
        with self.timer.measure("swiglu", backend="torch"):
            gate, up = gate_up.chunk(2, dim=-1)
            return F.silu(gate) * up

    def _reduce(self, partial: Tensor) -> Tensor:
        """Sum the ranks' parts of a split projection."""
        if self.communicator is None:
            return partial
        return self.timer.call(all_reduce, partial, self.communicator)
