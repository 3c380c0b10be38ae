"""The engine against the plain model, and the check that compares them against engines that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from batch import StepBatch
from check import LogitsCheck, routing_gap
from engine import Engine
from model import ModelConfig, encode
from scheduler import Request, Scheduler
from serve import Sampler, Totals, serve
from weights import Shard, Weights

Checkpoint = tuple[ModelConfig, dict[str, torch.Tensor]]
CPU = torch.device("cpu")


def requests_of(lengths: list[tuple[int, int]]) -> list[Request]:
    """Requests of so many prompt and new tokens, one arriving every third step."""
    return [Request(n, encode("x" * (p - 1)), m, arrival_step=3 * n) for n, (p, m) in enumerate(lengths)]


def serve_checked(
    checkpoint: Checkpoint,
    requests: list[Request],
    page_size: int = 4,
    max_step_tokens: int = 24,
    spoil: Callable[[Engine], None] = lambda engine: None,
) -> tuple[LogitsCheck, Totals, Engine]:
    config, state = checkpoint
    own = {name: weight.clone() for name, weight in state.items()}
    engine = Engine(config, own, num_pages=64, page_size=page_size, device=CPU)
    spoil(engine)
    check = LogitsCheck(config, state, CPU)
    sampler = Sampler(temperature=1.0, top_p=0.95, seed=0, timer=engine.timer)
    totals = serve(engine, Scheduler(requests, 64, page_size, max_step_tokens), sampler, check=check)
    return check, totals, engine


@pytest.mark.parametrize(("page_size", "max_step_tokens"), [(1, 256), (4, 5), (16, 24)])
def test_every_row_of_logits_equals_the_plain_forward_pass(
    tiny: Checkpoint, page_size: int, max_step_tokens: int
) -> None:
    requests = requests_of([(7, 6), (1, 9), (12, 1), (3, 4)])
    check, totals, _ = serve_checked(tiny, requests, page_size, max_step_tokens)
    assert check.passed, check.summary()
    assert check.rows == totals.new_tokens == sum(len(request.generated) for request in requests)
    assert all(request.finish_reason for request in requests)


def test_a_request_does_not_depend_on_its_neighbours_draws(tiny: Checkpoint) -> None:
    config, state = tiny
    sampler = Sampler(1.0, 0.9, seed=5, timer=Engine(config, state, 1, 1, CPU).timer)
    logits = torch.randn(3, config.vocab_size, generator=torch.Generator().manual_seed(0))
    requests = requests_of([(2, 5), (3, 5), (4, 5)])
    together = sampler(logits, requests)
    assert [sampler(logits[i : i + 1], requests[i : i + 1])[0] for i in range(3)] == together
    assert sampler(logits[:0], []) == []


def test_temperature_zero_is_greedy(tiny: Checkpoint) -> None:
    config, state = tiny
    sampler = Sampler(0.0, 0.9, seed=5, timer=Engine(config, state, 1, 1, CPU).timer)
    logits = torch.randn(20, config.vocab_size, generator=torch.Generator().manual_seed(0))
    assert sampler(logits, requests_of([(2, 5)] * 20)) == logits.argmax(-1).tolist()


def forget_a_page(engine: Engine) -> None:
    step = engine.step

    def spoiled(batch: StepBatch) -> object:
        output = step(batch)
        engine.caches[0][batch.kv_indices[0].item()] = 0
        return output

    engine.step = spoiled  # type: ignore[method-assign, assignment]


def swap_experts(engine: Engine) -> None:
    layer = engine.weights.layers[1]
    layer.down.copy_(layer.down.flip(0))


def turn_router(engine: Engine) -> None:
    router = engine.weights.layers[1].router
    assert router is not None
    router.neg_()


@pytest.mark.parametrize("spoil", [forget_a_page, swap_experts, turn_router])
def test_the_check_finds_a_wrong_engine(tiny: Checkpoint, spoil: Callable[[Engine], None]) -> None:
    check, _, _ = serve_checked(tiny, requests_of([(9, 5), (5, 5)]), spoil=spoil)
    assert not check.passed
    assert "FAILED" in check.summary()


def test_nan_fails_the_check(tiny: Checkpoint) -> None:
    check, _, _ = serve_checked(tiny, requests_of([(3, 2)]), spoil=lambda e: e.weights.norm.fill_(torch.nan))
    assert not check.passed


def test_routing_gap_is_zero_for_the_best_experts_and_grows_with_the_miss() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert routing_gap(logits, torch.tensor([[1, 0]])).item() == 0
    near, far = (routing_gap(logits, torch.tensor([[0, e]])).item() for e in (2, 3))
    assert 0 < near < far


def test_every_operator_is_timed_and_names_its_backend(tiny: Checkpoint) -> None:
    _, totals, engine = serve_checked(tiny, requests_of([(4, 3)]))
    expected = {
        "BatchAttention.plan",
        "BatchAttention.run",
        "LogitsPipe",
        "append_paged_kv_cache",
        "apply_rope_pos_ids",
        "get_batch_indices_positions",
        "grouped_mm_bf16",
        "mm_bf16",
    }
    rows = engine.timer.rows
    assert expected <= rows.keys()
    assert all(row.backends and row.seconds > 0 for row in rows.values()), rows
    assert rows["BatchAttention.plan"].calls == totals.steps  # one plan serves all layers
    assert rows["BatchAttention.run"].calls == totals.steps * tiny[0].num_layers
    assert all(label in engine.timer.table(totals.seconds) for label in rows)


def test_shards_of_all_ranks_make_the_whole_layer(tiny: Checkpoint) -> None:
    config, state = tiny
    whole = Weights.load(config, state, Shard(), CPU)
    halves = [Weights.load(config, state, Shard(rank, 2), CPU) for rank in range(2)]
    x = torch.randn(3, config.hidden_size, generator=torch.Generator().manual_seed(0))

    def dense(weights: Weights) -> torch.Tensor:
        layer = weights.layers[0]
        gate, up = (x @ layer.gate_up.float().t()).chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up) @ layer.down.float().t()

    torch.testing.assert_close(dense(halves[0]) + dense(halves[1]), dense(whole))
    q_size = config.num_qo_heads * config.head_dim // 2
    assert torch.equal(torch.cat([half.layers[0].qkv[:q_size] for half in halves]), whole.layers[0].qkv[: 2 * q_size])
    assert torch.equal(torch.cat([half.layers[1].down for half in halves], -1), whole.layers[1].down)


def test_a_model_that_does_not_divide_is_refused(tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match="num_qo_heads = 4 does not divide over 3 ranks"):
        Shard(0, 3).check(tiny[0])
