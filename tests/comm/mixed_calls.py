"""Every operator over peer memory, in several sizes and types, with inputs whose results are known beforehand."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comm_oracle import FLOATS, in_rank_order
from gpu_ranks import KERNELS

from warploom.comm import (
    AllReduceFusionPattern,
    MoeAlltoAll,
    all_gather,
    all_reduce,
    all_to_all,
    allreduce_fusion,
    create_allreduce_fusion_workspace,
    reduce_scatter,
)

VARIANTS = 3  # sets of inputs of a step
NEAR = {torch.bfloat16: 0.02, torch.float32: 1e-4, torch.float8_e4m3fn: 0.1}  # of norms, which no order of sums defines


@dataclass(frozen=True)
class Wanted:
    """What one result must be: the same numbers, or within `near` of them (relative and absolute)."""

    values: torch.Tensor
    near: float = 0.0

    def wrong(self, result):
        """How many elements are not, on the device; NaN is never wanted."""
        if self.near == 0.0:
            return (result != self.values).sum()
        error = (result.float() - self.values).abs()
        return (error <= self.near * (self.values.abs() + 1)).logical_not().sum()


@dataclass(frozen=True)
class Step:
    """One way to call an operator.

    `call` takes what `inputs` holds for a variant and returns results as `wanted` has them for it.
    """

    name: str
    inputs: list[tuple[torch.Tensor, ...]]
    wanted: list[tuple[Wanted, ...]]
    call: Callable[..., tuple[torch.Tensor, ...]]

    def wrong(self, results, variant):
        """How many elements of the results are wrong, on the device."""
        return sum(want.wrong(result) for result, want in zip(results, self.wanted[variant], strict=True))


class MixedCalls:
    """The steps of a communicator. Made by all ranks alike."""

    def __init__(self, comm):
        self.comm = comm
        self.steps = [
            *all_reduces(comm),
            *reduce_scatters(comm),
            *all_gathers(comm),
            *all_to_alls(comm),
            *fusions(comm),
            *rounds_of_experts(comm),
        ]

    def tally(self):
        """Zeros for `run` to count in: how many elements each step got wrong."""
        return torch.zeros(len(self.steps), dtype=torch.int64, device=self.comm.device)

    def draw(self, shared):
        """A step and a variant, from a generator that the ranks have in common."""
        return shared.randrange(len(self.steps)), shared.randrange(VARIANTS)

    def run(self, chosen, variant, tally):
        """One call on the current stream, and its check, which waits for nothing."""
        step = self.steps[chosen]
        tally[chosen].add_(step.wrong(step.call(*step.inputs[variant]), variant))

    def warm(self, tally):
        """Each step once, so that kernels are loaded and torch has memory: both may wait for an idle GPU."""
        for chosen in range(len(self.steps)):
            self.run(chosen, 0, tally)
            torch.cuda.synchronize()
        torch.cuda._sleep(1)
        self.check(tally)

    def check(self, *tallies):
        """Wait for this GPU; raise what the kernels report, and name the steps that were wrong."""
        torch.cuda.synchronize()
        self.comm.check()
        for tally in tallies:
            wrong = {step.name: count for step, count in zip(self.steps, tally.tolist(), strict=True) if count}
            assert not wrong, f"elements that differ: {wrong}"


def drawn(comm, shape, dtype, seed):
    """The tensors of all ranks, ``[size, *shape]``, which every GPU draws alike; integers have any bits."""
    generator = torch.Generator(comm.device).manual_seed(seed)
    shape = (comm.size, *shape)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, device=comm.device).to(dtype)
    limits = (0, 256) if dtype == torch.uint8 else (-(1 << 31), 1 << 31)
    return torch.randint(*limits, shape, generator=generator, device=comm.device).to(dtype)


def blank(comm, shape, dtype):
    """For a result: where nothing is written, it is seen."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else 77, dtype=dtype, device=comm.device)


def all_reduces(comm):
    for seed, (numel, dtype) in enumerate((numel, dtype) for numel in (1, 777, 16_384, 130_001) for dtype in FLOATS):
        stacks = [drawn(comm, (numel,), dtype, 10 * seed + variant) for variant in range(VARIANTS)]
        for backend in KERNELS:
            in_place = (seed + KERNELS.index(backend)) % 2 == 0

            def call(x, backend=backend, in_place=in_place):
                x = x.clone() if in_place else x
                out = x if in_place else torch.full_like(x, float("nan"))
                return (all_reduce(x, comm, out=out, backend=backend),)

            yield Step(
                f"all_reduce {backend}",
                [(stack[comm.rank],) for stack in stacks],
                [(Wanted(in_rank_order(stack)),) for stack in stacks],
                call,
            )


def reduce_scatters(comm):
    for seed, (numel, dtype) in enumerate((numel, dtype) for numel in (1, 333, 20_000) for dtype in FLOATS):
        shape = (comm.size, numel)
        stacks = [drawn(comm, shape, dtype, 10 * seed + variant) for variant in range(VARIANTS)]

        def call(x, numel=numel):
            out = blank(comm, (1, numel), x.dtype)
            return (reduce_scatter(x, comm, out=out, backend="oneshot"),)

        own = slice(comm.rank, comm.rank + 1)
        yield Step(
            "reduce_scatter oneshot",
            [(stack[comm.rank],) for stack in stacks],
            [(Wanted(in_rank_order(stack)[own].clone()),) for stack in stacks],
            call,
        )


def all_gathers(comm):
    for seed, (rows, dtype) in enumerate(((1, torch.uint8), (111, torch.int64), (3000, torch.bfloat16))):
        stacks = [drawn(comm, (rows, 7), dtype, 10 * seed + variant) for variant in range(VARIANTS)]
        for backend in ("oneshot", "exchange"):

            def call(x, backend=backend):
                out = blank(comm, (comm.size * x.shape[0], 7), x.dtype)
                return (all_gather(x, comm, out=out, backend=backend),)

            yield Step(
                f"all_gather {backend}",
                [(stack[comm.rank],) for stack in stacks],
                [(Wanted(stack.flatten(0, 1)),) for stack in stacks],
                call,
            )


def all_to_alls(comm):
    for largest, columns, dtype in ((1, 3, torch.uint8), (30, 100, torch.int64), (2000, 64, torch.bfloat16)):
        table = torch.randint(0, largest + 1, (comm.size, comm.size), generator=torch.Generator().manual_seed(largest))
        table *= torch.arange(comm.size**2).view_as(table) % 3 != 0  # some get nothing
        sent, received = table[comm.rank].tolist(), table[:, comm.rank].tolist()
        inputs, wanted = [], []
        for variant in range(VARIANTS):
            stack = drawn(comm, (int(table.sum(1).max()), columns), dtype, variant)
            rows = [of_rank[: int(row.sum())] for of_rank, row in zip(stack, table, strict=True)]
            parts = [of_rank.split(row.tolist())[comm.rank] for of_rank, row in zip(rows, table, strict=True)]
            inputs.append((rows[comm.rank].clone(),))
            wanted.append((Wanted(torch.cat(parts)),))

        def call(x, sent=sent, received=received):
            out = blank(comm, (sum(received), x.shape[1]), x.dtype)
            return (all_to_all(x, comm, received, sent, out=out, backend="exchange"),)

        yield Step("all_to_all exchange", inputs, wanted, call)


def fusions(comm):
    norm, quantised = (
        AllReduceFusionPattern.kARResidualRMSNorm,
        AllReduceFusionPattern.kARResidualRMSNormOutGroupFP8Quant,
    )
    for hidden, dtype, pattern in ((256, torch.float32, norm), (1024, torch.bfloat16, quantised)):
        workspace = create_allreduce_fusion_workspace(comm, max_token_num=200, hidden_dim=hidden, dtype=dtype)
        gamma = drawn(comm, (hidden,), dtype, 9)[0]
        for tokens in (1, 16, 200):
            inputs, wanted = fused_variants(comm, (tokens, hidden), dtype, gamma, pattern is quantised)
            for backend in ("fused_oneshot", "fused_twoshot"):

                def call(x, residual, workspace=workspace, gamma=gamma, pattern=pattern, backend=backend):
                    sums, norms = (torch.full_like(x, float("nan")) for _ in range(2))
                    options = {"residual_in": residual, "rms_gamma": gamma, "backend": backend}
                    options |= {"residual_out": sums, "norm_out": norms}
                    if not pattern.quantisation:
                        allreduce_fusion(x, workspace, pattern, **options)
                        return sums, norms
                    scales = blank(comm, (x.shape[0], x.shape[1] // 128), torch.float32)
                    codes = allreduce_fusion(x, workspace, pattern, scale_out=scales, **options)
                    return sums, norms, (codes.float().unflatten(1, (-1, 128)) * scales.unsqueeze(-1)).flatten(1)

                yield Step(f"allreduce_fusion {backend}", inputs, wanted, call)


def fused_variants(comm, shape, dtype, gamma, quantises):
    """Inputs and results: the sum with the residual, its norm, and the norm as codes times scales."""
    inputs, wanted = [], []
    for variant in range(VARIANTS):
        stack, residual = drawn(comm, shape, dtype, variant), drawn(comm, shape, dtype, 100 + variant)[0]
        total = in_rank_order(stack) + residual
        norm = torch.nn.functional.rms_norm(total.double(), shape[1:], gamma.double(), eps=1e-6).float()
        inputs.append((stack[comm.rank], residual))
        values = (Wanted(norm, NEAR[torch.float8_e4m3fn]),) if quantises else ()
        wanted.append((Wanted(total), Wanted(norm, NEAR[dtype]), *values))
    return inputs, wanted


def rounds_of_experts(comm):
    """Dispatch, experts that multiply by one more than their rank, combine; ranks have different numbers of tokens."""
    for backend in ("direct", "oneshot"):
        for most, hidden, dtype in ((5, 64, torch.float32), (32, 512, torch.bfloat16)):
            moe = MoeAlltoAll(comm, most, 2, 2 * comm.size, backend=backend)
            places = torch.arange(most, device=comm.device)
            variants = [expert_variant(comm, most, hidden, dtype, seed) for seed in range(VARIANTS)]

            def call(experts, x, tags, moe=moe, most=most, places=places):
                rows, small = moe.dispatch(experts, [x, tags], most)
                empty = (places >= moe.recv_counts.unsqueeze(1)).unsqueeze(-1)
                # Looked at before the combine: after it, peers may send the rows of their next dispatch.
                came = rows.masked_fill(empty, 0), small.masked_fill(empty, 0)
                out = torch.full_like(x, float("nan"))
                return *came, moe.recv_counts, moe.combine(rows * (comm.rank + 1), most, out=out)

            yield Step(f"moe {backend}", [one for one, _ in variants], [other for _, other in variants], call)


def expert_variant(comm, most, hidden, dtype, seed):
    """Experts, rows and tags of this rank; what it receives, how many rows of each rank, and what comes back."""
    tokens = [most * (rank + 1) // comm.size for rank in range(comm.size)]
    rows = drawn(comm, (most, hidden), dtype, seed)
    tags = drawn(comm, (most, 5), torch.uint8, seed)  # rows that are not aligned
    generator = torch.Generator(comm.device).manual_seed(seed)
    # Numbers of no expert are among them.
    experts = torch.randint(-1, 2 * comm.size + 1, (comm.size, most, 2), generator=generator, device=comm.device)
    owners = torch.div(experts, 2, rounding_mode="floor")
    goes = torch.stack([(owners == rank).any(-1) for rank in range(comm.size)], -1)  # [size, most, size]

    received = [torch.zeros_like(rows), torch.zeros_like(tags)]
    counts = torch.zeros(comm.size, dtype=torch.int32, device=comm.device)
    for rank, number in enumerate(tokens):
        for here, stack in zip(received, (rows, tags), strict=True):
            mine = stack[rank, :number][goes[rank, :number, comm.rank]]
            here[rank, : len(mine)] = mine
            counts[rank] = len(mine)
    own = slice(tokens[comm.rank])
    x, back = rows[comm.rank, own].clone(), torch.zeros(tokens[comm.rank], hidden, device=comm.device)
    for rank in range(comm.size):
        back += (x * (rank + 1)).float() * goes[comm.rank, own, rank].unsqueeze(-1)
    inputs = experts[comm.rank, own].to(torch.int32), x, tags[comm.rank, own].clone()
    return inputs, (*map(Wanted, received), Wanted(counts), Wanted(back.to(dtype)))
