"""One rank's share of the checkpoint, in the dtypes and layouts that the operators take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from model import ModelConfig
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Which share of the heads and of the feed-forward units this rank holds (Megatron's split)."""

    rank: int = 0
    world_size: int = 1

    def check(self, config: ModelConfig) -> None:
        """Raise ValueError unless the model divides evenly."""
        for name in ("num_qo_heads", "num_kv_heads", "ffn_size", "expert_size"):
            if getattr(config, name) % self.world_size:
                raise ValueError(f"{name} = {getattr(config, name)} does not divide over {self.world_size} ranks")

    def take(self, weight: Tensor, sections: Sequence[int], dim: int) -> Tensor:
        """This rank's part of every section of `dim`, for weights that hold several matrices one after the other."""
        parts = [section.chunk(self.world_size, dim)[self.rank] for section in weight.split(list(sections), dim)]
        return torch.cat(parts, dim)


@dataclass(frozen=True)
class LayerWeights:
    """One layer. Matrices are bfloat16 `[..., out, in]`; norms and the router are float32.

    With a mixture of experts `router` is given, and `gate_up` and `down` have a leading expert dimension.
    """

    attention_norm: Tensor
    qkv: Tensor
    out: Tensor
    ffn_norm: Tensor
    gate_up: Tensor
    down: Tensor
    router: Tensor | None


@dataclass(frozen=True)
class Weights:
    """The whole model; embedding, final norm and head are not split."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor

    @classmethod
    def load(cls, config: ModelConfig, state: dict[str, Tensor], shard: Shard, device: torch.device) -> Weights:
        """Cut and convert a `state` of `load_checkpoint`."""
        shard.check(config)
        return cls(
            embedding=state["embedding.weight"].to(device),
            layers=tuple(_load_layer(config, state, f"layers.{i}.", shard, device) for i in range(config.num_layers)),
            norm=state["norm.weight"].to(device),
            head=state["head.weight"].to(device, torch.bfloat16),
        )


def _load_layer(
    config: ModelConfig, state: dict[str, Tensor], prefix: str, shard: Shard, device: torch.device
) -> LayerWeights:
    moe = prefix + "ffn.router.weight" in state
    suffix = "" if moe else ".weight"  # experts are bare parameters, projections are nn.Linear
    qo_size, kv_size = config.num_qo_heads * config.head_dim, config.num_kv_heads * config.head_dim
    ffn_size = config.expert_size if moe else config.ffn_size

    def split(name: str, sections: Sequence[int], dim: int) -> Tensor:
        return shard.take(state[prefix + name], sections, dim).to(device, torch.bfloat16).contiguous()

    return LayerWeights(
        attention_norm=state[prefix + "attention_norm.weight"].to(device),
        qkv=split("attention.qkv.weight", (qo_size, kv_size, kv_size), 0),
        out=split("attention.out.weight", (qo_size,), 1),
        ffn_norm=state[prefix + "ffn_norm.weight"].to(device),
        gate_up=split("ffn.gate_up" + suffix, (ffn_size, ffn_size), -2),
        down=split("ffn.down" + suffix, (ffn_size,), -1),
        router=state[prefix + "ffn.router.weight"].to(device) if moe else None,
    )
