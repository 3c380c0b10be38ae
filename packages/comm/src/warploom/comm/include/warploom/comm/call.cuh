// The life of a call over peer memory: its number, what ranks must agree on, bounded waits, and the end of those that fail.
//
// Every rank owns a symmetric buffer that all GPUs of the host map: a header, two halves of which call s uses
// half s % 2, and staging memory, which has a protocol of its own (exchange.cuh).
//
// * Counting. The number of the call lives on the device and every call advances it, so a replayed graph goes on counting.
// * Terms. At its start a rank tells every peer what it calls, and at its end it has read what they call: ranks that call
//   different things learn it, and no call ends before every peer has begun it.
// * Reuse. A rank writes to a half again in call s + 2, which starts after its call s + 1 has ended (stream order), thus
//   after every peer had begun call s + 1, which is after that peer's call s had ended: whatever it found in the half
//   during call s it has taken. Calls of one communicator are ordered by their stream.
// * Failure. A wait ends when its time is over, when a peer has given up, or when a peer calls something else. The rank
//   tells its host and its peers, and later calls do nothing: what peers have sent meanwhile would be taken for theirs.
#pragma once

#include "warploom/common.cuh"
#include "warploom/sync.cuh"

namespace warploom::comm {

constexpr int kMaxRanks = 8;
constexpr int kMaxBlocks = 64;  // of one launch: all must be resident, beside those of another communicator
constexpr int kHeaderBytes = 1024;

// As `PeerWorkspace.check` names them.
enum Operation : uint32_t {
  kOneShotAllReduce = 1,
  kTwoShotAllReduce = 2,
  kReduceScatter = 3,
  kAllGather = 4,
  kOneShotFusion = 5,
  kTwoShotFusion = 6,
  kDispatch = 7,
  kCombine = 8,
  kExchange = 9,
  kDirectDispatch = 10,
  kDirectCombine = 11,
};

// Work of a call that warps share.
enum Queue { kSending, kReceiving, kQueues };

// What ranks must agree on in a call.
struct Terms {
  uint32_t operation;
  uint32_t element;  // what a message is made of
  uint32_t count;    // how many

  // With the number of the call; never zero, as the header is at first.
  WL_DEVICE uint64_t word(uint32_t call) const {
    return uint64_t((call + 1) & 0xffff) << 48 | uint64_t(operation) << 40 | uint64_t(element) << 32 | count;
  }
  WL_DEVICE static bool is_of(uint64_t word, uint32_t call) { return word >> 48 == ((call + 1) & 0xffff); }
};

// A call as one thread sees it.
struct Call {
  uint32_t number;
  Terms terms;
  bool is_of_pairs = false;  // counts are of two ranks: only a thread that watches a peer knows its terms with that
  bool watches = false;      // a few threads look at what a peer calls, each at another one's
  uint64_t seen = 0;         // last

  WL_DEVICE Call(Operation operation, uint32_t element, int64_t count)
      : number(0), terms{operation, element, uint32_t(count)} {}
  WL_DEVICE uint64_t word() const { return terms.word(number); }
  // Whether a peer's word is of this call and says something else.
  WL_DEVICE bool contradicts(uint64_t others) const {
    const int unknown = is_of_pairs && !watches ? 32 : 0;
    return Terms::is_of(others, number) && others >> unknown != word() >> unknown;
  }
};

// First bytes of each rank's buffer.
struct Header {
  uint32_t abort;            // 1 + the rank that gave up; peers write it
  uint32_t reported;         // 1 once this rank has told its host
  uint32_t shares[2][kQueues];     // that warps of this rank have taken in a call of each half: shares.cuh
  uint32_t unused[58];
  uint32_t calls[kMaxBlocks];      // calls so far, one copy for each block so that blocks need no agreement
  uint64_t terms[2][kMaxRanks];    // of each peer, in the last call of each half; peers write them
};
static_assert(sizeof(Header) <= kHeaderBytes, "header size");

// What the host reads after a failure; `PeerWorkspace.check` names the fields.
struct Report {
  uint32_t failed;      // written last
  uint32_t call;
  uint32_t peer;        // whose data was missing, or who called something else
  uint32_t stage;
  uint32_t aborted_by;  // 1 + the rank that gave up first and so ended this rank's wait; 0 if it did not
  uint32_t padding;
  uint64_t own;         // the word of this rank's terms
  uint64_t others;      // and of the peer's, if they differ
};

// What every kernel over peer memory is given.
struct Mailboxes {
  uint8_t* buffers[kMaxRanks];  // symmetric buffers in rank order, this rank's among them
  Report* report;               // pinned host memory
  uint64_t timeout_ns;
  int64_t half_bytes;
  int rank;

  WL_DEVICE Header* header(int owner) const { return reinterpret_cast<Header*>(buffers[owner]); }
  // Behind both halves.
  WL_DEVICE uint8_t* staging(int owner) const { return buffers[owner] + kHeaderBytes + 2 * half_bytes; }
  // Packets of `owner`'s half that call number `call` uses.
  WL_DEVICE uint4* half(int owner, const Call& call) const {
    return reinterpret_cast<uint4*>(buffers[owner] + kHeaderBytes + (call.number & 1) * half_bytes);
  }
  WL_DEVICE bool is_peer(int other) const { return other != rank && other < kMaxRanks && buffers[other] != nullptr; }
  WL_DEVICE uint64_t* terms(int owner, int of, uint32_t call) const { return &header(owner)->terms[call & 1][of]; }
};

// The first peer that calls something else; -1 while none is known.
WL_DEVICE int peer_of_other_terms(const Mailboxes& boxes, const Call& call) {
  for (int peer = 0; peer < kMaxRanks; ++peer) {
    const bool is_known = !call.is_of_pairs || !call.watches || peer == int(threadIdx.x);
    if (!boxes.is_peer(peer) || !is_known) continue;
    if (call.contradicts(load_relaxed_system(boxes.terms(boxes.rank, peer, call.number)))) return peer;
  }
  return -1;
}

// The first peer that has not begun the call; -1 if all have.
WL_DEVICE int peer_that_has_not_begun(const Mailboxes& boxes, const Call& call) {
  for (int peer = 0; peer < kMaxRanks; ++peer) {
    if (!boxes.is_peer(peer)) continue;
    if (!Terms::is_of(load_relaxed_system(boxes.terms(boxes.rank, peer, call.number)), call.number)) return peer;
  }
  return -1;
}

// Tell the host once what was missing, and the peers that this rank has given up, so that they do not wait in turn.
WL_DEVICE void give_up(const Mailboxes& boxes, const Call& call, uint32_t peer, uint32_t stage) {
  Header* own = boxes.header(boxes.rank);
  if (atomicExch(&own->reported, 1u) != 0) return;
  const uint32_t aborted_by = load_relaxed_system(&own->abort);
  const int other = peer_of_other_terms(boxes, call), absent = peer_that_has_not_begun(boxes, call);
  if (absent >= 0) peer = uint32_t(absent);  // whatever was missing, it comes from there in the end
  if (other >= 0) peer = uint32_t(other);
  Report* report = boxes.report;
  store_relaxed_system(&report->call, call.number);
  store_relaxed_system(&report->peer, peer);
  store_relaxed_system(&report->stage, stage);
  store_relaxed_system(&report->aborted_by, aborted_by);
  store_relaxed_system(&report->own, call.word());
  const uint64_t others = load_relaxed_system(boxes.terms(boxes.rank, int(peer), call.number));
  store_relaxed_system(&report->others, call.contradicts(others) ? others : 0);
  store_release_system(&report->failed, 1u);
  if (aborted_by != 0) return;
  for (int rank = 0; rank < kMaxRanks; ++rank) {
    if (boxes.buffers[rank] != nullptr) store_relaxed_system(&boxes.header(rank)->abort, boxes.rank + 1u);
  }
}

// Bounds a spin. Costs nothing until a packet is late: the clock is read every 256 polls.
struct Patience {
  uint64_t start = 0;
  uint32_t polls = 0;

  WL_DEVICE bool is_over(const Mailboxes& boxes, const Call& call) {
    if (++polls % 256 != 0) return false;
    const uint64_t now = global_nanoseconds();
    if (start == 0) start = now;
    return now - start > boxes.timeout_ns || load_relaxed_system(&boxes.header(boxes.rank)->abort) != 0 ||
           peer_of_other_terms(boxes, call) >= 0;
  }
};

// Poll until `ready()`. Returns false after giving up on a peer.
template <class Ready>
WL_DEVICE bool wait_until(Ready ready, const Mailboxes& boxes, const Call& call, uint32_t peer, uint32_t stage) {
  Patience patience;
  while (!ready()) {
    if (!patience.is_over(boxes, call)) continue;
    give_up(boxes, call, peer, stage);
    return false;
  }
  return true;
}

// Start a call, by all threads of every block of the launch, at least `kMaxRanks` each. Blocks that are not launched this
// time have their numbers advanced by those that are. False after a failure: the block must do nothing.
WL_DEVICE bool begin_call(Call& call, const Mailboxes& boxes) {
  wait_for_previous_kernel();
  Header* own = boxes.header(boxes.rank);
  call.number = own->calls[blockIdx.x];
  const uint32_t aborted_by = load_relaxed_system(&own->abort);
  const bool failed = __syncthreads_or(aborted_by != 0);  // all threads have read before one writes
  // For the next call: the last one, which had the same half, has ended.
  if (blockIdx.x == 0 && threadIdx.x < kQueues) own->shares[(call.number + 1) & 1][threadIdx.x] = 0;
  for (int copy = blockIdx.x + threadIdx.x * gridDim.x; copy < kMaxBlocks; copy += blockDim.x * gridDim.x) {
    own->calls[copy] = call.number + 1;
  }
  if (failed) {
    if (aborted_by != 0) give_up(boxes, call, aborted_by - 1, 0);
    return false;
  }
  call.watches = blockIdx.x == 0 && boxes.is_peer(threadIdx.x);
  if (call.watches) store_relaxed_system(boxes.terms(threadIdx.x, boxes.rank, call.number), call.word());
  return true;
}

// A look at what a peer calls, beside every poll for data: when that has come, this has, too.
WL_DEVICE void look_at_terms(Call& call, const Mailboxes& boxes) {
  if (call.watches && call.seen != call.word()) {
    call.seen = load_relaxed_system(boxes.terms(boxes.rank, threadIdx.x, call.number));
  }
}

// End a block's waits, by all its threads: all peers have begun the call and mean the same. The next kernel of the stream
// may come now; earlier it could take the place of another communicator's blocks, for which a peer may be waiting.
WL_DEVICE void end_call(Call& call, const Mailboxes& boxes) {
  const auto is_agreed = [&] {
    look_at_terms(call, boxes);
    return !call.watches || call.seen == call.word();
  };
  wait_until(is_agreed, boxes, call, threadIdx.x, 0);
  allow_next_kernel();
}

}  // namespace warploom::comm
