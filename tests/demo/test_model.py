"""The plain model, which is the oracle of --check, against independent formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from model import ModelConfig, Routing, Transformer, encode, rotate

Checkpoint = tuple[ModelConfig, dict[str, torch.Tensor]]


def load(checkpoint: Checkpoint) -> Transformer:
    model = Transformer(checkpoint[0])
    model.load_state_dict(checkpoint[1])
    return model.eval()


def test_logits_do_not_depend_on_later_tokens(tiny: Checkpoint) -> None:
    model, tokens = load(tiny), torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(1))
    full = model(tokens)
    torch.testing.assert_close(model(tokens[:, :7]), full[:, :7])


def test_rotation_makes_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float32, generator=torch.Generator().manual_seed(2))

    def score(i: int, j: int) -> torch.Tensor:
        return (rotate(q, torch.tensor([i]), 1e4) * rotate(k, torch.tensor([j]), 1e4)).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rotate(q, torch.tensor([0]), 1e4), q)


def test_the_mixture_is_the_weighted_sum_of_its_experts(tiny: Checkpoint) -> None:
    mixture = load(tiny).layers[1].ffn
    x = torch.randn(1, 9, tiny[0].hidden_size, generator=torch.Generator().manual_seed(3))
    trace: list[Routing] = []
    y = mixture(x, None, trace)
    logits = x @ mixture.router.weight.t()
    for t in range(9):
        scores, experts = logits[0, t].topk(2)
        expected = torch.zeros_like(y[0, t])
        for weight, e in zip(scores.softmax(0), experts, strict=True):
            gate, up = (mixture.gate_up[e] @ x[0, t]).chunk(2)
            expected += weight * (mixture.down[e] @ (F.silu(gate) * up))
        torch.testing.assert_close(y[0, t], expected)
    torch.testing.assert_close(trace[0].logits, logits)
    assert (trace[0].gates > 0).sum() == 18


def test_the_choice_of_experts_can_be_forced(tiny: Checkpoint) -> None:
    model, tokens = load(tiny), torch.tensor([[1, 2, 3]])
    trace: list[Routing] = []
    free = model(tokens, None, trace)
    own = [routing.logits.topk(2, dim=-1).indices for routing in trace]
    torch.testing.assert_close(model(tokens, own), free)
    others = [routing.logits.topk(2, dim=-1, largest=False).indices for routing in trace]
    assert not torch.allclose(model(tokens, others), free)


def test_prompts_are_bytes_after_a_newline() -> None:
    assert encode("é") == [10, 0xC3, 0xA9]
