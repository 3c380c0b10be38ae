"""Thousands of calls of all operators over peer memory: ``mpirun -n N python -m pytest -m multigpu tests/comm``."""

import random

import pytest
import torch
from gpu_ranks import be_late, calls_for
from mixed_calls import VARIANTS, MixedCalls

from warploom.comm import Communicator

pytestmark = pytest.mark.multigpu(count=1)
AT_ONCE = 500  # a queue of thousands of launches would hide who is behind


@pytest.fixture(scope="module")
def mixed(gpus):
    """The steps of `gpus`, each called before."""
    calls = MixedCalls(gpus)
    calls.warm(calls.tally())
    gpus.barrier()
    return calls


def test_a_wrong_element_is_counted(mixed):
    """What the other tests rely on."""
    for chosen, step in enumerate(mixed.steps):
        results = step.call(*step.inputs[0])
        assert int(step.wrong(results, 0)) == 0, step.name
        for result in results:
            if result.numel() == 0:
                continue
            last = result.view(-1)[-1:]
            kept = last.clone()
            last.copy_(torch.full_like(kept, float("nan")) if kept.is_floating_point() else kept ^ 1)
            assert int(step.wrong(results, 0)) == 1, f"step {chosen}, {step.name}"
            last.copy_(kept)
    mixed.check()


@pytest.mark.parametrize(("calls", "skewed"), [(4000, False), (1500, True)], ids=["back_to_back", "skewed"])
def test_calls_in_random_order(gpus, mixed, calls, skewed):
    shared, own = random.Random(11), random.Random(gpus.rank)
    tally = mixed.tally()
    for call in range(calls_for(gpus, calls)):
        if skewed:
            be_late(own)
        mixed.run(*mixed.draw(shared), tally)
        if call % AT_ONCE == AT_ONCE - 1:
            mixed.check(tally)
    mixed.check(tally)


def test_calls_that_change_their_stream(gpus, mixed):
    """Which of two streams a call goes to is each rank's own choice."""
    shared, own = random.Random(12), random.Random(gpus.rank)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    tallies = [mixed.tally() for _ in streams]
    torch.cuda.synchronize()
    for call in range(calls_for(gpus, 1500)):
        side = own.randrange(2)
        with torch.cuda.stream(streams[side]):
            be_late(own)
            mixed.run(*mixed.draw(shared), tallies[side])
        if call % AT_ONCE == AT_ONCE - 1:
            mixed.check(*tallies)
    mixed.check(*tallies)


def test_two_communicators_on_two_streams(gpus, mixed):
    """Ranks issue the two in different orders: they must not block each other."""
    with Communicator.from_mpi(device=gpus.device, timeout=20.0) as other:
        both = [mixed, MixedCalls(other)]
        streams = [torch.cuda.Stream(), torch.cuda.Stream()]
        tallies = [calls.tally() for calls in both]
        torch.cuda.synchronize()
        for side, calls in enumerate(both):
            # Before the ranks' orders differ: what waits for an idle GPU here could wait for good there.
            with torch.cuda.stream(streams[side]):
                calls.warm(tallies[side])
        gpus.barrier()
        shared, own = random.Random(13), random.Random(gpus.rank)
        for call in range(calls_for(gpus, 1000)):
            turns = [(side, *calls.draw(shared)) for side, calls in enumerate(both)]
            own.shuffle(turns)
            for side, chosen, variant in turns:
                with torch.cuda.stream(streams[side]):
                    be_late(own)
                    both[side].run(chosen, variant, tallies[side])
            if call % AT_ONCE == AT_ONCE - 1:
                for calls, tally in zip(both, tallies, strict=True):
                    calls.check(tally)
        for calls, tally in zip(both, tallies, strict=True):
            calls.check(tally)


def test_a_graph_of_every_operator(gpus, mixed):
    """Replayed with other inputs each time, with calls outside the graph between."""
    last = {step.name: step for step in mixed.steps}  # the largest of each
    steps = list(last.values())
    assert len(steps) == 10, last.keys()
    given = [[x.clone() for x in step.inputs[0]] for step in steps]
    graph = torch.cuda.CUDAGraph()
    gpus.barrier()
    with torch.cuda.graph(graph):
        results = [step.call(*xs) for step, xs in zip(steps, given, strict=True)]
    shared, own = random.Random(14), random.Random(gpus.rank)
    wrong = torch.zeros(len(steps), dtype=torch.int64, device=gpus.device)
    outside = mixed.tally()
    for replay in range(calls_for(gpus, 300)):
        variants = [shared.randrange(VARIANTS) for _ in steps]
        for step, xs, variant in zip(steps, given, variants, strict=True):
            for x, new in zip(xs, step.inputs[variant], strict=True):
                x.copy_(new)
        be_late(own)
        graph.replay()
        for i, (step, variant) in enumerate(zip(steps, variants, strict=True)):
            wrong[i].add_(step.wrong(results[i], variant))
        for _ in range(shared.randrange(3)):
            mixed.run(*mixed.draw(shared), outside)
        if replay % 100 == 99:
            mixed.check(outside)
    mixed.check(outside)
    assert dict(zip(last, wrong.tolist(), strict=True)) == dict.fromkeys(last, 0)
