// Exchange over peer memory: every rank sends some bytes to each peer and receives some of each. All-to-all with any
// splits, and all-gather of large tensors.
//
// A channel is a sending warp of one rank, a receiving warp of another, and a ring of slots in the receiver's staging memory.
// Chunks go into slots by ordinary 16-byte stores; behind each the sender tells the receiver how many it has filled, and the
// receiver, when it has read one, how many it has freed. Why this is right:
// * Order. A warp's accesses, its barrier, then the count with release order; the peer acquires the count, then its own
//   warp's barrier.
// * Reuse. Both ends count a channel's chunks from the first call on, and a slot is filled again, in this call or a later
//   one, only when the peer has freed it. Nothing is emptied and no call waits for the end of the last one. Only this kernel
//   uses staging memory: in the mailboxes, which are empty between calls, each access here would cost another store.
// * Sizes. What a rank sends to a peer and what that expects are terms of the call between the two. Every message has a first
//   chunk, if an empty one.
// Ranks may launch with other shapes in other calls, but all alike in one call.
#pragma once

#include "warploom/comm/call.cuh"
#include "warploom/comm/copy.cuh"

namespace warploom::comm {

struct ExchangeParams {
  const void* inputs[kMaxRanks];      // for each rank, this one among them
  void* outputs[kMaxRanks];           // of each rank
  int64_t sent_bytes[kMaxRanks];
  int64_t received_bytes[kMaxRanks];  // the peer's `sent_bytes` for this rank
};

// Staging memory: the counters of all channels, one in a sector of L2 each, then their slots.
constexpr int kMaxChannels = 512;
constexpr int kCounterBytes = 32;
enum Counter {
  kFilled,  // chunks that the sending peer has put into slots here; it writes this
  kFreed,   // chunks that the receiving peer has read from its slots; it writes this
  kSent,    // chunks that this rank has sent, kept from call to call
  kTaken,   // likewise received
  kCounters,
};

WL_DEVICE uint32_t* counter_of(const Mailboxes& boxes, int owner, Counter counter, int channel) {
  return reinterpret_cast<uint32_t*>(boxes.staging(owner) + (counter * kMaxChannels + channel) * kCounterBytes);
}

// Config: kChunkBytes, of a slot; kSlots, a power of two.
template <class Config>
WL_DEVICE uint8_t* slots_of(const Mailboxes& boxes, int owner, int channel) {
  constexpr int64_t kRingBytes = Config::kSlots * Config::kChunkBytes;
  return boxes.staging(owner) + kCounters * kMaxChannels * kCounterBytes + channel * kRingBytes;
}

// Wait until a counter is at least `count`; `seen` is what it was last. Counters may pass 2^32. Returns false after giving up.
WL_DEVICE bool wait_for_count(const uint32_t* counter, uint32_t count, uint32_t& seen, const Mailboxes& boxes, const Call& call,
                              uint32_t peer, uint32_t stage) {
  if (int(seen - count) >= 0) return true;
  if (lane_id() == 0) {
    const auto is_reached = [&] { return int((seen = load_acquire_system(counter)) - count) >= 0; };
    wait_until(is_reached, boxes, call, peer, stage);
  }
  __syncwarp();  // what the first lane has acquired comes before the accesses of all
  seen = __shfl_sync(kFullMask, seen, 0);
  return int(seen - count) >= 0;
}

// One end of a channel: from memory to the peer's slots, or from the slots here to memory.
template <class Config>
WL_DEVICE void run_channel(const Mailboxes& boxes, const ExchangeParams& params, const Call& call, int channel, int channels,
                           bool sends) {
  constexpr int kRanks = Config::kRanks, kPeers = kRanks - 1;
  constexpr int64_t kChunk = Config::kChunkBytes;
  // Channels are dealt to the peers in turn, so that every rank sends to all of them at once; those of one deal its chunks.
  const int turns = channels / kPeers, turn = channel / kPeers, hop = 1 + channel % kPeers;
  if (turn >= turns) return;
  const int peer = (boxes.rank + (sends ? hop : kRanks - hop)) % kRanks;
  uint8_t* memory = static_cast<uint8_t*>(sends ? const_cast<void*>(params.inputs[peer]) : params.outputs[peer]);
  const int64_t bytes = sends ? params.sent_bytes[peer] : params.received_bytes[peer];
  uint8_t* slots = slots_of<Config>(boxes, sends ? peer : boxes.rank, channel);
  const uint32_t* awaited = counter_of(boxes, boxes.rank, sends ? kFreed : kFilled, channel);
  uint32_t* told = counter_of(boxes, peer, sends ? kFilled : kFreed, channel);
  uint32_t* kept = counter_of(boxes, boxes.rank, sends ? kSent : kTaken, channel);

  const uint32_t ahead = sends ? Config::kSlots : 0;  // of the peer's count
  uint32_t done = *kept, seen = done - ahead;
  int64_t first = turn * kChunk;
  for (; first < max(bytes, int64_t(1)); first += turns * kChunk) {
    if (!wait_for_count(awaited, done + 1 - ahead, seen, boxes, call, peer, sends ? 1 : 0)) break;
    uint8_t* slot = slots + done % Config::kSlots * kChunk;
    copy_bytes(sends ? slot : memory + first, sends ? memory + first : slot, int(min(kChunk, bytes - first)));
    __syncwarp();  // all lanes' accesses come before the count
    ++done;
    if (lane_id() == 0) store_release_system(told, done);
  }
  if (lane_id() == 0) *kept = done;
  // What never came gets the pattern that is no number in any float type.
  for (; !sends && first < bytes; first += turns * kChunk) {
    const int64_t end = min(first + kChunk, bytes);
    for (int64_t i = first + lane_id(); i < end; i += kWarpSize) memory[i] = 0xff;
  }
}

// Config: kRanks; kMaxThreads; kChunkBytes; kSlots. Blocks are pairs of warps, and all of them at least one pair for each peer.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    exchange_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ ExchangeParams params) {
  static_assert(kMaxBlocks * Config::kMaxThreads / (2 * kWarpSize) <= kMaxChannels, "a channel for each pair of warps");
  static_assert((Config::kSlots & (Config::kSlots - 1)) == 0, "slots are dealt by the bits of a count");
  Call call(kExchange, 0, 0);
  call.is_of_pairs = true;
  if (threadIdx.x < kMaxRanks) call.terms.count = uint32_t(params.sent_bytes[threadIdx.x]);
  if (!begin_call(call, boxes)) return;
  if (threadIdx.x < kMaxRanks) call.terms.count = uint32_t(params.received_bytes[threadIdx.x]);
  // Half of the warps send and half receive, so that no rank waits for room at another that waits likewise.
  const int senders = int(blockDim.x) / (2 * kWarpSize);
  const bool sends = warp_id() < senders;
  // Neighbours are in different blocks: few chunks keep many multiprocessors busy.
  const int channel = warp_id() % senders * int(gridDim.x) + int(blockIdx.x), channels = senders * int(gridDim.x);
  run_channel<Config>(boxes, params, call, channel, channels, sends);
  constexpr int64_t kChunk = Config::kChunkBytes;
  const uint8_t* input = static_cast<const uint8_t*>(params.inputs[boxes.rank]);
  uint8_t* output = static_cast<uint8_t*>(params.outputs[boxes.rank]);
  const int64_t own = min(params.sent_bytes[boxes.rank], params.received_bytes[boxes.rank]);
  for (int64_t first = channel * kChunk; sends && first < own; first += channels * kChunk) {
    copy_bytes(output + first, input + first, int(min(kChunk, own - first)));
  }
  end_call(call, boxes);
}

}  // namespace warploom::comm
