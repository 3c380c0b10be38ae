// Mailboxes in peer memory: 16-byte packets whose payload is its own flag.
//
// Every rank owns a symmetric buffer that all GPUs of the host map: a header, two halves of packets, and staging memory, which
// has a protocol of its own (exchange.cuh). An empty word holds a bit pattern that no payload may hold: `kEmpty`, a NaN, which
// senders turn into another NaN. A sender writes packets without empty words, the owner spins on its own memory until no word
// of a packet is empty, takes the payload and empties the words again. No flag is sent and no barrier closes a call.
//
// Why this is right under the PTX memory model:
// * Arrival. Words are written and polled with relaxed operations of system scope, 32 bits each (a vector access is
//   four scalar ones in any order). Each word carries its own arrival, so no order between words is needed.
// * Reuse. Call s uses half s % 2. A rank writes there again in call s + 2, which starts after its call s + 1 has ended
//   (stream order), thus after it took packets of call s + 1 from every peer. A peer sends those after its own call s
//   has ended, which is after it emptied what it had taken. So the new packet never meets the old one, provided that
//   every call of a rank takes at least one packet from every peer and that calls of one communicator are ordered by
//   their stream.
// * Any bits. What is not a number may hold every pattern. Its packets carry two words, each in 64 bits with a flag,
//   which is the number of the call; they are emptied like the others.
// * Counting. The call number lives on the device and every call advances it, so a replayed graph goes on counting.
#pragma once

#include "warploom/comm/packet.cuh"
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
};

constexpr uint32_t kEmpty = 0xffffffffu;   // NaN as fp32, and two NaNs as fp16 or bf16 pair
constexpr uint32_t kSealed = 0x7fff7fffu;  // likewise

// First bytes of each rank's buffer.
struct Header {
  uint32_t abort;            // 1 + the rank that gave up; peers write it
  uint32_t reported;         // 1 once this rank has told its host
  uint32_t unused[62];
  uint32_t calls[kMaxBlocks];  // calls so far, one copy for each block so that blocks need no agreement
};
static_assert(sizeof(Header) <= kHeaderBytes, "header size");

// What the host reads after a failure; `PeerWorkspace.check` names the fields.
struct Report {
  uint32_t failed;      // written last
  uint32_t operation;   // which kernel
  uint32_t call;
  uint32_t peer;        // whose packet was missing
  uint32_t stage;
  uint32_t aborted_by;  // 1 + the rank that gave up first and so ended this rank's wait; 0 if the time was over
};

// What every kernel over mailboxes is given.
struct Mailboxes {
  uint8_t* buffers[kMaxRanks];  // symmetric buffers in rank order, this rank's among them
  Report* report;               // pinned host memory
  uint64_t timeout_ns;
  int64_t half_bytes;
  int rank;

  WL_DEVICE Header* header(int owner) const { return reinterpret_cast<Header*>(buffers[owner]); }
  // Packets of `owner`'s half that call number `call` uses.
  WL_DEVICE uint4* half(int owner, uint32_t call) const {
    return reinterpret_cast<uint4*>(buffers[owner] + kHeaderBytes + (call & 1) * half_bytes);
  }
  // Behind both halves.
  WL_DEVICE uint8_t* staging(int owner) const { return buffers[owner] + kHeaderBytes + 2 * half_bytes; }
};

WL_DEVICE void send_packet(uint4* slot, uint4 packet) {
  packet.x = packet.x == kEmpty ? kSealed : packet.x;
  packet.y = packet.y == kEmpty ? kSealed : packet.y;
  packet.z = packet.z == kEmpty ? kSealed : packet.z;
  packet.w = packet.w == kEmpty ? kSealed : packet.w;
  store_relaxed_system(slot, packet);
}

// This block's number of the current call, advanced for the next one. Every block of the launch calls it once with all
// threads. Blocks that are not launched this time have their copies advanced by those that are.
WL_DEVICE uint32_t begin_call(const Mailboxes& boxes) {
  uint32_t* calls = boxes.header(boxes.rank)->calls;
  const uint32_t call = calls[blockIdx.x];
  __syncthreads();  // all threads have read before one writes
  for (int copy = blockIdx.x + threadIdx.x * gridDim.x; copy < kMaxBlocks; copy += blockDim.x * gridDim.x) {
    calls[copy] = call + 1;
  }
  return call;
}

// Bounds a spin. Costs nothing until a packet is late: the clock is read every 256 polls.
struct Patience {
  uint64_t start = 0;
  uint32_t polls = 0;

  WL_DEVICE bool is_over(const Mailboxes& boxes) {
    if (++polls % 256 != 0) return false;
    const uint64_t now = global_nanoseconds();
    if (start == 0) start = now;
    return now - start > boxes.timeout_ns || load_relaxed_system(&boxes.header(boxes.rank)->abort) != 0;
  }
};

// Tell the host once what was missing, and the peers that this rank has given up, so that they do not wait in turn.
WL_DEVICE void give_up(const Mailboxes& boxes, uint32_t operation, uint32_t call, uint32_t peer, uint32_t stage) {
  Header* own = boxes.header(boxes.rank);
  if (atomicExch(&own->reported, 1u) != 0) return;
  const uint32_t aborted_by = load_relaxed_system(&own->abort);
  Report* report = boxes.report;
  store_relaxed_system(&report->operation, operation);
  store_relaxed_system(&report->call, call);
  store_relaxed_system(&report->peer, peer);
  store_relaxed_system(&report->stage, stage);
  store_relaxed_system(&report->aborted_by, aborted_by);
  store_release_system(&report->failed, 1u);
  if (aborted_by != 0) return;
#pragma unroll
  for (int rank = 0; rank < kMaxRanks; ++rank) {
    if (boxes.buffers[rank] != nullptr) store_relaxed_system(&boxes.header(rank)->abort, boxes.rank + 1u);
  }
}

// Packets of four words that are never `kEmpty`.
struct PlainPackets {
  WL_DEVICE static uint4 load(const uint4* slot) { return load_relaxed_system(slot); }
  WL_DEVICE static void store(uint4* slot, uint4 packet) { store_relaxed_system(slot, packet); }
  WL_DEVICE bool arrived(uint4 packet) const {
    return packet.x != kEmpty && packet.y != kEmpty && packet.z != kEmpty && packet.w != kEmpty;
  }
};

// Packets of two words of any bits, each beside the flag of the call.
struct FlaggedPackets {
  uint32_t flag;

  WL_DEVICE explicit FlaggedPackets(uint32_t call) : flag(call & 0x7fffffffu) {}  // not kEmpty
  WL_DEVICE static uint4 load(const uint4* slot) { return load_halves_relaxed_system(slot); }
  WL_DEVICE static void store(uint4* slot, uint4 packet) { store_halves_relaxed_system(slot, packet); }
  WL_DEVICE bool arrived(uint4 packet) const { return packet.y == flag && packet.w == flag; }
  WL_DEVICE void send(uint4* slot, uint2 words) const { store(slot, make_uint4(words.x, flag, words.y, flag)); }
};

// Take one packet of each peer: slots lie `stride` packets apart in rank order, and this rank's own place in `packets`
// is left alone. Returns false after giving up.
template <int kRanks, class Kind = PlainPackets>
WL_DEVICE bool take_packets(uint4 (&packets)[kRanks], uint4* slots, int64_t stride, const Mailboxes& boxes,
                            uint32_t operation, uint32_t call, uint32_t stage, Kind kind = {}) {
  const uint4 empty = make_uint4(kEmpty, kEmpty, kEmpty, kEmpty);
  Patience patience;
  uint32_t missing;
  do {
    missing = 0;
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) {
      if (peer != boxes.rank) packets[peer] = kind.load(slots + peer * stride);
    }
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) {
      if (peer != boxes.rank && !kind.arrived(packets[peer])) missing |= 1u << peer;
    }
    if (missing != 0 && patience.is_over(boxes)) {
      give_up(boxes, operation, call, __ffs(missing) - 1, stage);
      return false;
    }
  } while (missing != 0);
#pragma unroll
  for (int peer = 0; peer < kRanks; ++peer) {
    if (peer != boxes.rank) kind.store(slots + peer * stride, empty);
  }
  return true;
}

// Take the packet of one rank, which may be this one.
template <class Kind = PlainPackets>
WL_DEVICE bool take_packet(uint4& packet, uint4* slot, const Mailboxes& boxes, uint32_t operation, uint32_t call,
                           uint32_t peer, uint32_t stage, Kind kind = {}) {
  Patience patience;
  while (!kind.arrived(packet = kind.load(slot))) {
    if (patience.is_over(boxes)) {
      give_up(boxes, operation, call, peer, stage);
      return false;
    }
  }
  kind.store(slot, make_uint4(kEmpty, kEmpty, kEmpty, kEmpty));
  return true;
}

}  // namespace warploom::comm
