"""`all_to_all`, `dispatch` and `combine` on GPUs that repeat an earlier call: what is launched and kept. No GPU needed."""

import gc
import sys
import weakref

import pytest
import torch
from emulated_ranks import EmulatedRanks, as_gpu, on_gpu, ways_to_spoil
from torch.utils._python_dispatch import TorchDispatchMode

from warploom.comm import MoeAlltoAll, all_gather, all_to_all
from warploom.comm.backends.direct.moe_all_to_all import DirectDispatch
from warploom.core.errors import ArgumentError, CommunicationError, PlanError
from warploom.core.settings import settings

TOP_K, EXPERTS, MOST, HIDDEN = 2, 8, 16, 64
OPERATORS = {
    "all_to_all": ("all_to_all", "_run"),
    "all_gather": ("all_gather", "_run"),
    "dispatch": ("moe_all_to_all", "_dispatch"),
    "combine": ("moe_all_to_all", "_combine"),
}
ADDRESSES = {"payloads", "experts", "slots", "sent", "counts", "payload", "output", "inputs", "outputs"}


@pytest.fixture
def ranks(monkeypatch):
    emulated = EmulatedRanks(monkeypatch)
    emulated.looked_at = []  # the calls that went through torch's dispatcher, as unknown ones do
    for name, (file, function) in OPERATORS.items():
        module = sys.modules[f"warploom.comm.{file}"]
        operator = getattr(module, function)

        def look(*arguments, name=name, run=operator):
            emulated.looked_at.append(name)
            return run(*arguments)

        monkeypatch.setattr(module, function, look)
    return emulated


@pytest.fixture
def comm(ranks):
    return ranks.communicator()


def moe_of(comm, backend="direct", **change):
    limits = {"max_num_tokens": MOST, "top_k": TOP_K, "num_experts": EXPERTS, **change}
    return MoeAlltoAll(comm, backend=backend, **limits)


def experts_of(tokens=4, dtype=torch.int32):
    return on_gpu(tokens, TOP_K, dtype=dtype)


def payloads_of(tokens=4, hidden=HIDDEN):
    return [on_gpu(tokens, hidden), on_gpu(tokens, TOP_K, dtype=torch.int32), on_gpu(tokens, dtype=torch.float32)]


def results(rows=MOST, hidden=HIDDEN, dtype=torch.bfloat16):
    return on_gpu(2, rows, hidden, dtype=dtype)


def know(moe, tokens=4, rows=MOST):
    """Two rounds, after which dispatch and combine are known."""
    for _ in range(2):
        moe.dispatch(experts_of(tokens), payloads_of(tokens), rows)
        moe.combine(results(rows), rows)


def without_addresses(launch):
    kernel, shape, stream, fields = launch
    return kernel, shape, stream, {name: value for name, value in fields.items() if name not in ADDRESSES}


@pytest.mark.parametrize("splits", [(None, None), ([3, 0], [1, 7]), ((5, 1), None)])
def test_known_exchanges_launch_the_same_at_other_addresses(ranks, comm, splits):
    rows = sum(splits[0] or (8,))
    sent, received = splits[1] or [4, 4], splits[0] or [4, 4]
    for number in range(3):
        x, out = on_gpu(8, 40), on_gpu(rows, 40)
        assert all_to_all(x, comm, *splits, out, backend="exchange") is out
        fields = ranks.launches[-1][3]
        assert fields["inputs"] == [x.data_ptr(), x.data_ptr() + sent[0] * 80, *[0] * 6]
        assert fields["outputs"] == [out.data_ptr(), out.data_ptr() + received[0] * 80, *[0] * 6]
        assert (fields["sent_bytes"][:2], fields["received_bytes"][:2]) == (
            [80 * part for part in sent],
            [80 * part for part in received],
        )
        if number == 0:
            expected = without_addresses(ranks.launches[0])
        assert without_addresses(ranks.launches[-1]) == expected
    assert ranks.looked_at == ["all_to_all"]
    assert comm.calls == 3


def test_known_gathers_by_exchange(ranks, comm):
    for _ in range(3):
        x, out = on_gpu(8, 40), on_gpu(16, 40)
        all_gather(x, comm, out=out, backend="exchange")
        fields = ranks.launches[-1][3]
        assert fields["inputs"] == [x.data_ptr()] * 2 + [0] * 6
        assert fields["outputs"] == [out.data_ptr(), out.data_ptr() + 640, *[0] * 6]
        assert without_addresses(ranks.launches[-1]) == without_addresses(ranks.launches[0])
    assert ranks.looked_at == ["all_gather"]


@pytest.mark.parametrize(
    "change",
    [
        {"input_split_sizes": [5, 3]},
        {"output_split_sizes": [2, 6]},
        {"output_split_sizes": [4, 5]},
        {"x": on_gpu(8, 41)},
        {"x": on_gpu(8, 40, dtype=torch.int64)},
        {"x": as_gpu(on_gpu(40, 8).t())},
        {"out": on_gpu(8, 40)},
        {"input_split_sizes": torch.Size([4, 4])},
    ],
)
def test_other_exchanges_are_looked_at(ranks, comm, change):
    given = {"x": on_gpu(8, 40), "comm": comm, "backend": "exchange"}
    all_to_all(**given)
    all_to_all(**{**given, **change})
    all_to_all(**given)
    assert ranks.looked_at == ["all_to_all"] * 2


def test_exchanges_without_outputs_and_with_strides(ranks, comm):
    made = [all_to_all(on_gpu(8, 40), comm, [1, 2], backend="exchange") for _ in range(3)]
    assert [tuple(one.shape) for one in made] == [(3, 40)] * 3
    assert len({one.data_ptr() for one in made}) == 3
    assert ranks.launches[-1][3]["outputs"][0] == made[-1].data_ptr()
    ranks.looked_at.clear()
    for _ in range(2):
        x, out = as_gpu(on_gpu(8, 80)[:, ::2]), as_gpu(on_gpu(8, 80)[:, ::2])
        assert all_to_all(x, comm, out=out, backend="exchange") is out
        fields = ranks.launches[-1][3]
        assert fields["inputs"][0] != x.data_ptr()
        assert fields["outputs"][0] != out.data_ptr()
    assert ranks.looked_at == ["all_to_all"]


def test_wrong_row_counts_raise_beside_known_exchanges(ranks, comm):
    x = on_gpu(8, 40)
    all_to_all(x, comm, [4, 4], [4, 4], backend="exchange")
    for wrong in ([4], [4, 5], [9, -1], []):
        for _ in range(2):
            with pytest.raises(ArgumentError, match="input_split_sizes"):
                all_to_all(x, comm, [4, 4], wrong, backend="exchange")
    with pytest.raises(RuntimeError, match="int"):
        all_to_all(x, comm, [4, 4], [4.0, 4.0], backend="exchange")


@pytest.mark.parametrize("backend", ["direct", "oneshot"])
def test_known_dispatches_and_combines_launch_the_same_at_other_addresses(ranks, comm, backend):
    moe = moe_of(comm, backend)
    for number in range(3):
        experts, payloads, payload, out = experts_of(), payloads_of(), results(), on_gpu(4, HIDDEN)
        received = moe.dispatch(experts, payloads, MOST)
        slots, counts = moe._slots, moe.recv_counts
        assert moe.combine(payload, MOST, out=out) is out
        place, move, add = ranks.launches[-3:]
        if number == 0:
            expected = [without_addresses(launch) for launch in (place, move, add)]
            where = [one.data_ptr() for one in received]
        assert [without_addresses(launch) for launch in (place, move, add)] == expected
        assert (place[3]["experts"], place[3]["slots"]) == (experts.data_ptr(), slots.data_ptr())
        assert place[3]["sent"] == move[3]["sent"] not in (0, slots.data_ptr(), counts.data_ptr())
        assert move[3]["payloads"] == [payload.data_ptr() for payload in payloads] + [0] * 5
        assert (move[3]["slots"], move[3]["counts"]) == (slots.data_ptr(), counts.data_ptr())
        assert (add[3]["payload"], add[3]["output"]) == (payload.data_ptr(), out.data_ptr())
        assert (add[3]["slots"], add[3]["counts"]) == (slots.data_ptr(), counts.data_ptr())
        assert [one.data_ptr() for one in received] == where
        assert [tuple(one.shape) for one in received] == [(2, MOST, HIDDEN), (2, MOST, TOP_K), (2, MOST)]
        assert [one.dtype for one in received] == [torch.bfloat16, torch.int32, torch.float32]
        assert (tuple(slots.shape), tuple(counts.shape), counts.dtype) == ((4, 2), (2,), torch.int32)
        if backend == "direct":
            begin = moe._landings["dispatch"]._buffer.local.data_ptr()
            assert move[3]["received"] == [one - begin for one in where] + [0] * 5
            assert move[3]["row_bytes"] == [HIDDEN * 2, TOP_K * 4, 4] + [0] * 5
            assert move[3]["landing"]["buffers"][0] == begin
            assert add[3]["landing"]["buffers"][0] != begin
    assert ranks.looked_at == ["dispatch", "combine"]
    assert comm.transport.activity.startswith("moe_combine, call ")


def test_more_payloads_than_land_go_another_way(ranks, comm, monkeypatch):
    handed = []
    monkeypatch.setattr(sys.modules["warploom.comm.moe_all_to_all"], "_dispatch", lambda *given: handed.append(given))
    moe = moe_of(comm, "auto")
    for number in (8, 9, 14):
        received = moe.dispatch(experts_of(), [on_gpu(4, 1, dtype=torch.uint8)] * number, MOST)
        assert [tuple(one.shape) for one in received] == [(2, MOST, 1)] * number
        assert len({one.data_ptr() for one in received}) == number
        landing = handed[-1][8]
        assert (landing != 0) == (number == 8)
        moe._slots = None


def test_what_is_handed_out_is_new_each_time(ranks, comm):
    moe = moe_of(comm)
    rounds, sums = [], []
    for _ in range(3):
        received = moe.dispatch(experts_of(), payloads_of(), MOST)
        received[0].requires_grad_()
        received[2].mul_(torch.ones((), requires_grad=True))
        rounds.append((*received, moe._slots, moe.recv_counts))
        sums.append(moe.combine(results(), MOST))
        received.clear()
    assert ranks.looked_at == ["dispatch", "combine"]
    assert all(len({id(one) for one in same}) == 3 for same in zip(*rounds, strict=True))
    for same in (sums, *list(zip(*rounds, strict=True))[-2:]):
        assert len({one.data_ptr() for one in same}) == 3
    received = moe.dispatch(experts_of(), payloads_of(), MOST)
    assert not any(one.requires_grad for one in received)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 8},
        {"tokens": 3},
        {"tokens": 0},
        {"experts": experts_of(dtype=torch.int64)},
        {"experts": as_gpu(torch.zeros(TOP_K, 4, dtype=torch.int32).t())},
        {"payloads": payloads_of()[:2]},
        {"payloads": [*payloads_of(hidden=8), on_gpu(4, dtype=torch.uint8)]},
        {"payloads": payloads_of()[::-1]},
        {"payloads": [as_gpu(on_gpu(HIDDEN, 4).t()), *payloads_of()[1:]]},
        {"payloads": [on_gpu(4, HIDDEN, dtype=torch.float16), *payloads_of()[1:]]},
        {"payloads": [on_gpu(4, HIDDEN).requires_grad_(), *payloads_of()[1:]]},
        {"ids": (-1, 1)},
    ],
)
def test_other_dispatches_are_looked_at(ranks, comm, change):
    moe = moe_of(comm)
    know(moe)
    tokens, rows = change.get("tokens", 4), change.get("rows", MOST)
    experts, payloads = change.get("experts", experts_of(tokens)), change.get("payloads", payloads_of(tokens))
    known = ranks.launches[-2]
    ranks.looked_at.clear()
    for _ in range(2):
        received = moe.dispatch(experts, payloads, rows, *change.get("ids", ()))
        assert [tuple(one.shape) for one in received] == [(2, rows, *one.shape[1:]) for one in payloads]
        move = ranks.launches[-1]
        assert move[3]["num_payloads"] == len(payloads)
        assert (move[3]["tokens"], move[3]["max_tokens"]) == (tokens, rows)
        assert ranks.launches[-2][3]["words"] == experts.element_size() // 4
        moe._slots = None
    is_odd = any(one.requires_grad for one in payloads)
    assert ranks.looked_at == ["dispatch"] * (2 if is_odd else 1)
    know(moe)
    assert ranks.launches[-2][3]["row_bytes"] == known[3]["row_bytes"]
    assert ranks.looked_at == ["dispatch"] * (2 if is_odd else 1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"payload": results(8), "rows": 8}, 8),
        ({"payload": results(hidden=32)}, 4),
        ({"payload": results(dtype=torch.float16)}, 8),
        ({"payload": as_gpu(results(hidden=2 * HIDDEN)[..., ::2])}, 8),
        ({"out": on_gpu(4, HIDDEN)}, 8),
        ({"tokens": 3}, 8),
    ],
)
def test_other_combines_are_looked_at(ranks, comm, change, expected):
    moe = moe_of(comm)
    know(moe)
    for number in range(2):
        tokens, rows = change.get("tokens", 4), change.get("rows", MOST)
        moe.dispatch(experts_of(tokens), payloads_of(tokens), MOST)
        ranks.looked_at.clear()
        result = moe.combine(change.get("payload", results()), rows, out=change.get("out"))
        assert result.shape[0] == tokens == ranks.launches[-1][3]["tokens"]
        assert ranks.launches[-1][3]["packets"] == expected
        assert ranks.looked_at == ["combine"] * (1 - number)


@pytest.mark.parametrize("backend", ["direct", "oneshot"])
def test_misaligned_results_go_through_aligned_memory(ranks, comm, backend):
    moe = moe_of(comm, backend)
    know(moe)
    payload = as_gpu(on_gpu(2 * MOST * HIDDEN + 1)[1:].view(2, MOST, HIDDEN))
    out = as_gpu(on_gpu(4 * HIDDEN + 1)[1:].view(4, HIDDEN))
    moe.dispatch(experts_of(), payloads_of(), MOST)
    moe.combine(payload, MOST, out=out)
    moe.dispatch(experts_of(), payloads_of(), MOST)
    moe.combine(payload, MOST, out=out)
    assert ranks.looked_at == ["dispatch", "combine", "combine"], "an output that is given is another call"
    known, fields = ranks.launches[2], ranks.launches[-1]
    assert known[:2] == fields[:2], "other ranks may have aligned tensors: all must launch the same"
    assert not {fields[3]["payload"], fields[3]["output"]} & {payload.data_ptr(), out.data_ptr(), 0}
    assert fields[3]["payload"] % 16 == fields[3]["output"] % 16 == 0


def test_misaligned_and_strided_rows_are_sent(ranks, comm):
    moe = moe_of(comm)
    know(moe)
    odd = as_gpu(on_gpu(4 * HIDDEN + 1)[1:].view(4, HIDDEN))
    moe.dispatch(experts_of(), [odd, *payloads_of()[1:]], MOST)
    assert ranks.launches[-1][3]["payloads"][0] == odd.data_ptr()
    assert ranks.looked_at == ["dispatch", "combine"]
    for _ in range(2):
        moe._slots = None
        strided = as_gpu(on_gpu(4, 2 * HIDDEN)[:, ::2])
        moe.dispatch(experts_of(), [strided, *payloads_of()[1:]], MOST)
        assert ranks.launches[-1][3]["payloads"][0] not in (0, strided.data_ptr())
    assert ranks.looked_at == ["dispatch", "combine", "dispatch"]


def test_larger_rows_take_new_memory_which_no_known_call_confuses_with_the_old(ranks, comm):
    moe = moe_of(comm)
    know(moe)
    old = moe._landings["dispatch"]
    ranks.looked_at.clear()
    large = [on_gpu(4, 8 * HIDDEN)]
    moe.dispatch(experts_of(), large, MOST)
    moe.combine(results(), MOST)
    new = moe._landings["dispatch"]
    assert new is not old
    assert hasattr(old._buffer, "local"), "graphs that were captured before may use it"
    for payloads in (payloads_of(), payloads_of(), large):
        received = moe.dispatch(experts_of(), payloads, MOST)
        begin = new._buffer.local.data_ptr()
        assert all(0 < one.data_ptr() - begin < new._buffer.nbytes for one in received)
        assert ranks.launches[-1][3]["landing"]["buffers"][0] == begin
        moe._slots = None
    assert ranks.looked_at == ["dispatch"] * 2, "the combine's memory is the same"


def test_closed_objects_give_their_memory_back(ranks, comm):
    moe = moe_of(comm)
    know(moe)
    moe.dispatch(experts_of(), [on_gpu(4, 8 * HIDDEN)], MOST)
    landings = [*moe._outgrown, *moe._landings.values()]
    kept = [weakref.ref(call) for call in comm.repeated.values()]
    assert len(landings) == 3
    moe.close()
    gc.collect()
    assert not any(hasattr(landing._buffer, "local") for landing in landings)
    assert [one() for one in kept] == [None] * len(kept), "views keep the memory"
    ranks.looked_at.clear()
    know(moe)
    assert ranks.looked_at == ["dispatch", "combine"]
    moe.close()
    moe.close()


def test_objects_know_their_own_calls(ranks, comm):
    first, second = moe_of(comm), moe_of(comm)
    know(first)
    know(second)
    assert ranks.looked_at == ["dispatch", "combine"] * 2
    ones = [moe.dispatch(experts_of(), payloads_of(), MOST)[0].data_ptr() for moe in (first, second)]
    assert len(set(ones)) == 2
    assert len(ranks.looked_at) == 4
    know(moe_of(ranks.communicator()))
    assert len(ranks.looked_at) == 6


def test_states_and_wrong_arguments_beside_known_calls(ranks, comm):
    moe = moe_of(comm)
    know(moe)
    experts, payloads = experts_of(), payloads_of()
    with pytest.raises(PlanError, match="call dispatch first"):
        moe.combine(results(), MOST)
    moe.dispatch(experts, payloads, MOST)
    launched = len(ranks.launches)
    with pytest.raises(PlanError, match="not combined yet"):
        moe.dispatch(experts, payloads, MOST)
    for wrong in (results(8), results(dtype=torch.float64), on_gpu(2, MOST)):
        with pytest.raises(ArgumentError, match="payload"):
            moe.combine(wrong, MOST)
    assert len(ranks.launches) == launched
    moe.combine(results(), MOST)
    for arguments, text in (
        ((experts, payloads, MOST + 1), "max_num_tokens"),
        ((experts, payloads, 3), "runtime_max_tokens_per_rank"),
        ((on_gpu(4, 3, dtype=torch.int32), payloads, MOST), "token_selected_experts"),
        ((experts, [on_gpu(3, HIDDEN)], MOST), "input_payloads"),
        ((experts, payloads, MOST, -1), "expert_id_payload_index"),
        ((experts, payloads, MOST, -1, 0), "expert_id_payload_index"),
    ):
        for _ in range(2):
            with pytest.raises(ArgumentError, match=text):
                moe.dispatch(*arguments)
    assert moe._slots is None
    assert ranks.looked_at == ["dispatch", "combine"]


def test_foreign_ids_are_replaced_in_known_dispatches(ranks, comm):
    moe = moe_of(comm)
    for _ in range(3):
        landing = moe._landings.get("dispatch")
        if landing is not None:
            landing._buffer.local[landing.rows_offset :].fill_(5)  # ids of no rank
        ids = moe.dispatch(experts_of(), [experts_of()], MOST, -7, 0)[0]
        moe._slots = None
    assert ids.eq(-7).all()
    assert ranks.looked_at == ["dispatch"]
    ids = torch.arange(-4, 12, dtype=torch.int32).view(1, 8, 2).repeat(2, 1, 1)
    moe._sanitise(ids, torch.tensor([8, 5]), -7)
    own = torch.tensor([-7] * 4 + [0, 1, 2, 3] + [-7] * 8).view(8, 2)
    assert torch.equal(ids[0], own.int())
    assert torch.equal(ids[1], torch.where(torch.arange(8)[:, None] < 5, own, -7).int())


def test_another_stream_waits_for_the_last_one(ranks, comm):
    moe, x = moe_of(comm), on_gpu(8, 40)
    for stream in (7, 7, 8, 8):
        ranks.stream = stream
        moe.dispatch(experts_of(), payloads_of(), MOST)
        moe.combine(results(), MOST)
    ranks.stream = 7
    for _ in range(2):
        all_to_all(x, comm, backend="exchange")
    assert [stream for _, _, stream, _ in ranks.launches] == [7] * 6 + [8] * 6 + [7] * 2
    assert ranks.events == ["8 after end of 7", "7 after end of 8"]
    assert ranks.looked_at == ["dispatch", "combine", "all_to_all"]


def test_closed_and_failed_communicators_refuse_known_calls(ranks):
    for spoil, text in ways_to_spoil(operation=10):  # a dispatch
        comm = ranks.communicator()
        x, moe, open_moe = on_gpu(8, 40), moe_of(comm), moe_of(comm)
        for _ in range(2):
            all_to_all(x, comm, backend="exchange")
        know(moe)
        know(open_moe)
        open_moe.dispatch(experts_of(), payloads_of(), MOST)
        launched = len(ranks.launches)
        spoil(comm)
        for use in (
            lambda x=x, comm=comm: all_to_all(x, comm, backend="exchange"),
            lambda moe=moe: moe.dispatch(experts_of(), payloads_of(), MOST),
            lambda moe=open_moe: moe.combine(results(), MOST),
        ):
            with pytest.raises(CommunicationError, match=text):
                use()
        assert len(ranks.launches) == launched
        assert moe._slots is None
        assert open_moe._slots is not None


def test_debug_checks_look_at_every_call(ranks, comm, monkeypatch):
    agreed = []
    monkeypatch.setattr(comm.transport, "exchange_objects", lambda terms: agreed.append(terms[1]) or [terms] * 2)
    moe, x = moe_of(comm), on_gpu(8, 40)
    know(moe)
    all_to_all(x, comm, backend="exchange")
    assert not agreed
    with settings.override(debug_checks=True):
        know(moe)
        for _ in range(2):
            all_to_all(x, comm, backend="exchange")
    assert agreed == ["moe_dispatch", "moe_combine"] * 2 + ["all_to_all"] * 2


def test_captures_are_known_apart(ranks, comm):
    moe = moe_of(comm)
    ranks.capturing = True
    with pytest.raises(PlanError, match="before the capture"):
        moe.dispatch(experts_of(), payloads_of(), MOST)
    ranks.capturing = False
    know(moe)
    ranks.capturing, ranks.stream = True, 9
    know(moe)
    ranks.capturing = False
    know(moe)
    assert ranks.looked_at == ["dispatch", "combine"] * 2
    assert ranks.events == ["9 after end of 7"], "waits inside the capture"


def test_inference_mode_is_known_apart(ranks, comm):
    moe = moe_of(comm)
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            for _ in range(2):
                received = moe.dispatch(experts_of(), payloads_of(), MOST, -1, 1)
                received[0].zero_()
                moe._slots = None
    assert ranks.looked_at == ["dispatch"] * 2


def test_who_watches_sees_the_operators(ranks, comm):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.add(str(function))
            return function(*args, **(kwargs or {}))

    seen, moe = set(), moe_of(comm)
    know(moe)
    with Watch():
        know(moe)
        for _ in range(2):
            all_to_all(on_gpu(8, 40), comm, backend="exchange")
    assert {"warploom.moe_dispatch.default", "warploom.moe_combine.default", "warploom.all_to_all.default"} <= seen


def test_nothing_of_a_call_is_kept_alive(ranks):
    comm = ranks.communicator()
    moe, x = moe_of(comm), on_gpu(8, 40)
    experts, payloads, payload = experts_of(), payloads_of(), results()
    for _ in range(2):
        received = moe.dispatch(experts, payloads, MOST)
        slots, counts = moe._slots, moe.recv_counts
        out = moe.combine(payload, MOST)
        all_to_all(x, comm, backend="exchange")
    gone = [weakref.ref(one) for one in (experts, *payloads, payload, *received, slots, out, x)]
    last = weakref.ref(counts)
    del experts, payloads, payload, received, slots, counts, out, x
    gc.collect()
    assert [one() for one in gone] == [None] * len(gone)
    assert last() is moe.recv_counts
    calls, landing = weakref.ref(next(iter(comm.repeated.values()))), weakref.ref(moe._landings["dispatch"])
    whole = weakref.ref(comm)
    del moe
    gc.collect()
    assert landing() is None, "kept by what its object knows"
    del comm
    gc.collect()
    assert (whole(), calls()) == (None, None)


def test_many_payloads_that_no_kernel_takes(ranks, comm):
    moe = moe_of(comm, max_num_tokens=4)
    known = [on_gpu(4, 8) for _ in range(8)]
    for _ in range(2):
        moe.dispatch(experts_of(), known, 4)
        moe._slots = None
    assert ranks.looked_at == ["dispatch"]
    assert ranks.launches[-1][3]["payloads"] == [one.data_ptr() for one in known]
    assert DirectDispatch.spec(2).params[-1]._fields["payloads"][1] == 8
    with pytest.raises(Exception, match="takes up to 8 payloads, got 9"):
        moe.dispatch(experts_of(), [*known, on_gpu(4, dtype=torch.uint8)], 4)
