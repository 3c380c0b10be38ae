"""The demo's language model in plain torch: what `train.py` trains and what `--check` compares the engine with.

A byte-level decoder-only transformer: RMSNorm, rotary embedding (NEOX pairing), grouped-query attention, SwiGLU, and in
every `moe_every`-th layer a mixture of experts with top-k routing. Nothing here uses warploom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

END_OF_TEXT = 256
"""Token after the last byte of a document; tokens 0..255 are the bytes themselves."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model. The defaults give four million parameters, below 4 MB at eight bits each."""

    vocab_size: int = 264  # 256 bytes and END_OF_TEXT, padded to a multiple of 8 for the matrix units
    hidden_size: int = 256
    num_layers: int = 6
    num_qo_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    ffn_size: int = 384
    expert_size: int = 192
    num_experts: int = 4
    top_k: int = 2
    moe_every: int = 2
    context: int = 1024
    rope_theta: float = 1e4
    norm_eps: float = 1e-5

    def is_moe(self, layer: int) -> bool:
        """Whether the feed-forward part of `layer` is a mixture of experts."""
        return layer % self.moe_every == self.moe_every - 1

    def as_dict(self) -> dict[str, int | float]:
        """The fields by name, for the checkpoint's header."""
        return asdict(self)


def encode(text: str) -> list[int]:
    """Tokens of a prompt. A newline goes first: the model then sees the text at the start of a line."""
    return list(b"\n" + text.encode("utf-8"))


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary embedding, NEOX pairing: dimension `i` turns with dimension `i + head_dim / 2`.

    `x` is `[..., tokens, heads, head_dim]`, `positions` is `[tokens]`. Su et al., "RoFormer", 2021.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = positions.to(torch.float32)[:, None, None] * frequency  # [tokens, 1, half]
    cos, sin = angle.cos(), angle.sin()
    first, second = x.float().split(half, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, computed in float32. Zhang and Sennrich, 2019."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Causal grouped-query attention; `qkv` holds the rows of q, then of k, then of v."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        qo_size = config.num_qo_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, qo_size + 2 * kv_size, bias=False)
        self.out = nn.Linear(qo_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, c.num_qo_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = qkv.split((c.num_qo_heads, c.num_kv_heads, c.num_kv_heads), dim=2)
        positions = torch.arange(tokens, device=x.device)
        q, k = rotate(q, positions, c.rope_theta), rotate(k, positions, c.rope_theta)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [batch, heads, tokens, head_dim]
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(o.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    """SwiGLU; `gate_up` holds the gate's rows, then the up projection's. Shazeer, 2020."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.ffn_size, bias=False)
        self.down = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Routing(NamedTuple):
    """A mixture layer's decision: router `logits` and `gates` (0 where not chosen), `[batch, tokens, experts]`."""

    logits: Tensor
    gates: Tensor


class MixtureOfExperts(nn.Module):
    """`top_k` of `num_experts` SwiGLU experts per token, weighted by a softmax over the chosen router logits.

    Computed densely: all experts side by side are one wide SwiGLU whose hidden units are scaled by the gates, which are
    0 for experts that were not chosen.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        e, f, d = config.num_experts, config.expert_size, config.hidden_size
        self.router = nn.Linear(d, e, bias=False)
        self.gate_up = nn.Parameter(torch.empty(e, 2 * f, d))
        self.down = nn.Parameter(torch.empty(e, d, f))

    def route(self, x: Tensor, experts: Tensor | None) -> Routing:
        """Gates of every token; `experts` (`[batch, tokens, top_k]`) replaces the router's choice."""
        logits = self.router(x).float()
        if experts is None:
            experts = logits.topk(self.top_k, dim=-1).indices
        weights = torch.gather(logits, -1, experts).softmax(-1)
        return Routing(logits, torch.zeros_like(logits).scatter(-1, experts, weights))

    def forward(self, x: Tensor, experts: Tensor | None, trace: list[Routing] | None) -> Tensor:
        routing = self.route(x, experts)
        if trace is not None:
            trace.append(routing)
        num_experts, hidden_size, expert_size = self.down.shape
        hidden = F.linear(x, self.gate_up.flatten(0, 1)).unflatten(-1, (num_experts, 2 * expert_size))
        gate, up = hidden.chunk(2, dim=-1)
        hidden = F.silu(gate) * up * routing.gates[..., None].to(hidden.dtype)  # [batch, tokens, experts, expert_size]
        return F.linear(hidden.flatten(-2), self.down.transpose(0, 1).reshape(hidden_size, -1))


class Layer(nn.Module):
    """Pre-norm transformer layer; the residual stream stays in float32."""

    def __init__(self, config: ModelConfig, moe: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn: FeedForward | MixtureOfExperts = MixtureOfExperts(config) if moe else FeedForward(config)

    def forward(self, x: Tensor, experts: Tensor | None, trace: list[Routing] | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        normed = self.ffn_norm(x)
        if isinstance(self.ffn, MixtureOfExperts):
            return x + self.ffn(normed, experts, trace)
        return x + self.ffn(normed)


class Transformer(nn.Module):
    """The whole model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, config.is_moe(i)) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Random weights, scaled by fan-in; the two projections into the residual stream are damped by depth."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                continue  # norm weights stay 1
            std = 0.02 if name == "embedding.weight" else 0.5 * parameter.shape[-1] ** -0.5
            if name.endswith(("attention.out.weight", "ffn.down", "ffn.down.weight")):
                std /= (2 * self.config.num_layers) ** 0.5
            with torch.no_grad():
                parameter.normal_(0.0, std, generator=generator)

    def forward(
        self, tokens: Tensor, experts: Sequence[Tensor] | None = None, trace: list[Routing] | None = None
    ) -> Tensor:
        """Float32 logits `[batch, tokens, vocab_size]` of int64 `tokens` `[batch, tokens]`.

        `experts` forces the choice of each mixture layer, in order; `trace` receives each one's `Routing`.
        """
        choices = iter(experts) if experts is not None else None
        x = self.embedding(tokens).float()
        for i, layer in enumerate(self.layers):
            x = layer(x, next(choices) if choices is not None and self.config.is_moe(i) else None, trace)
        return self.head(self.norm(x)).float()
