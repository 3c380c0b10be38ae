// Expert parallelism over peer memory, for many tokens: rows go straight to where they are read, with a flag behind each.
//
// Every rank has a second symmetric buffer: numbers of rows, flags, and the rows. A warp copies a part of a row with ordinary
// stores and releases its flag, the number of the call; who waits for the flag acquires it and reads the part. Nothing has to
// be emptied, and what lands is not copied again. Few rows have several parts each, so that all warps have some.
//
// When rows may be overwritten: dispatch and combine take turns. A peer's next dispatch begins after its combine has ended,
// thus after this rank's combine had begun (call.cuh), which is after its experts have read what the last dispatch brought.
// What a combine brings is read by that combine, and the next one of a peer begins after another dispatch of both.
#pragma once

#include "warploom/comm/copy.cuh"
#include "warploom/comm/message.cuh"
#include "warploom/comm/moe.cuh"
#include "warploom/comm/shares.cuh"

namespace warploom::comm {

// The second buffer of every rank, which has the same layout on all.
struct Landing {
  uint8_t* buffers[kMaxRanks];
  int64_t numbers;  // where in a buffer: uint64 [kRanks, 2], rows from each rank and the number of the call
  int64_t flags;    // uint32 [kRanks, capacity, parts, 2]
  int capacity;     // most rows that a rank sends to another one
  int parts;        // most parts of a row

  // Calls use both in turn: one that comes without its counterpart, as a benchmark may repeat it, overwrites rows of the call
  // before, not what a slow rank still waits for there.
  WL_DEVICE uint64_t* number(int owner, int from, const Call& call) const {
    return reinterpret_cast<uint64_t*>(buffers[owner] + numbers) + from * 2 + (call.number & 1);
  }
  // `part` counts those of all rows.
  WL_DEVICE uint32_t* flag(int owner, int from, int64_t part, const Call& call) const {
    const int64_t place = int64_t(from) * capacity * parts + part;
    return reinterpret_cast<uint32_t*>(buffers[owner] + flags) + place * 2 + (call.number & 1);
  }
};

WL_DEVICE uint32_t flag_of(const Call& call) { return call.number + 1; }  // zero is none

// Part `part` of `parts` of a row of so many packets, the last of which may be short.
struct Range {
  int begin, end;
  WL_DEVICE Range(int64_t packets, int part, int parts)
      : begin(int(packets * part / parts)), end(int(packets * (part + 1) / parts)) {}
};

// Copy a part of a row, by a warp.
WL_DEVICE void copy_part(uint8_t* to, const uint8_t* from, int64_t bytes, int part, int parts) {
  constexpr int kPacketBytes = sizeof(uint4);
  const Range range(ceil_div(bytes, int64_t(kPacketBytes)), part, parts);
  const int begin = range.begin * kPacketBytes, end = int(min(int64_t(range.end) * kPacketBytes, bytes));
  copy_bytes(to + begin, from + begin, end - begin);
}

// Say that a part is there, by the warp that has copied it.
WL_DEVICE void release_part(const Landing& landing, int owner, int from, int64_t part, const Call& call) {
  __syncwarp();
  if (lane_id() == 0) store_release_system(landing.flag(owner, from, part, call), flag_of(call));
}

// Wait for a part. Returns false after giving up.
WL_DEVICE bool await_part(const Landing& landing, const Mailboxes& boxes, const Call& call, int from, int64_t part) {
  const uint32_t* flag = landing.flag(boxes.rank, from, part, call);
  const auto has_come = [&] { return load_acquire_system(flag) == flag_of(call); };
  return wait_until(has_come, boxes, call, from, 1);
}

// Tell a peer how many rows it gets; one thread for each.
WL_DEVICE void send_number(const Landing& landing, int peer, int from, int rows, const Call& call) {
  store_relaxed_system(landing.number(peer, from, call), uint64_t(flag_of(call)) << 32 | uint32_t(rows));
}

// How many rows come from a peer; none after giving up.
WL_DEVICE int await_number(const Landing& landing, const Mailboxes& boxes, const Call& call, int from) {
  const uint64_t* number = landing.number(boxes.rank, from, call);
  uint64_t word;
  const auto has_come = [&] { return (word = load_relaxed_system(number)) >> 32 == flag_of(call); };
  return wait_until(has_come, boxes, call, from, 0) ? min(int(uint32_t(word)), landing.capacity) : 0;
}

struct DirectDispatchParams {
  const void* payloads[kMaxPayloads];  // [tokens, row_bytes[i]]
  int64_t received[kMaxPayloads];      // where in a buffer: [kRanks, max_tokens, row_bytes[i]]
  int64_t row_bytes[kMaxPayloads];
  const int* slots;                    // [tokens, kRanks]
  const int* sent;                     // [kRanks]
  int* counts;                         // [kRanks]: rows that came from each rank
  int tokens;
  int max_tokens;
  int num_payloads;
  int parts;
};

// Config: kRanks; kMaxThreads, whole warps.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    direct_dispatch_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ Landing landing,
                           const __grid_constant__ DirectDispatchParams params) {
  constexpr int kRanks = Config::kRanks;
  const int rank = boxes.rank;
  const int first = int(blockIdx.x * blockDim.x + threadIdx.x), threads = int(gridDim.x * blockDim.x);
  const int parts = params.parts;
  Call call(kDirectDispatch, 0, params.max_tokens * params.num_payloads);
  if (!begin_call(call, boxes)) return;

  if (first < kRanks && first != rank) send_number(landing, first, rank, params.sent[first], call);
  Shares shares(call, boxes, kSending, int64_t(params.tokens) * kRanks * parts, first / kWarpSize, threads / kWarpSize);
  for (uint32_t share = shares.take(); share < shares.count(); share = shares.take()) {
    const int at = int(share), part = at % parts, peer = (at / parts + rank) % kRanks, token = at / parts / kRanks;
    const int place = params.slots[token * kRanks + peer];
    if (place < 0) continue;
    for (int payload = 0; payload < params.num_payloads; ++payload) {
      const int64_t bytes = params.row_bytes[payload], row = int64_t(rank) * params.max_tokens + place;
      copy_part(landing.buffers[peer] + params.received[payload] + row * bytes,
                static_cast<const uint8_t*>(params.payloads[payload]) + token * bytes, bytes, part, parts);
    }
    if (peer != rank) release_part(landing, peer, rank, place * parts + part, call);
  }
  __shared__ int numbers[kRanks];
  if (threadIdx.x < kRanks) {
    const int from = threadIdx.x;
    numbers[from] = from == rank ? 0 : await_number(landing, boxes, call, from);
    if (blockIdx.x == 0) params.counts[from] = from == rank ? params.sent[rank] : numbers[from];
  }
  __syncthreads();
#pragma unroll
  for (int from = 0; from < kRanks; ++from) {
    for (int part = first; part < numbers[from] * parts; part += threads) {
      if (!await_part(landing, boxes, call, from, part)) break;
    }
  }
  end_call(call, boxes);
}

struct DirectCombineParams {
  const void* payload;  // [kRanks, max_tokens, packets], aligned to 16 bytes
  void* output;         // [tokens, packets]
  const int* slots;     // [tokens, kRanks], of the dispatch
  const int* counts;    // [kRanks]
  int64_t returned;     // where in a buffer: [kRanks, max_tokens, packets]
  int tokens;
  int max_tokens;
  int packets;          // of a row
  int parts;
};

// Half of the warps send rows back while the others add those that come.
// Config: T, the element type; kRanks; kMaxThreads, whole pairs of warps.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    direct_combine_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ Landing landing,
                          const __grid_constant__ DirectCombineParams params) {
  using T = typename Config::T;
  constexpr int kRanks = Config::kRanks, kPeers = kRanks - 1;
  const int rank = boxes.rank;
  const int pairs = int(gridDim.x * blockDim.x) / (2 * kWarpSize);
  const int pair = int(blockIdx.x * blockDim.x + threadIdx.x) / (2 * kWarpSize);
  const uint4* payload = static_cast<const uint4*>(params.payload);
  const int64_t row_bytes = int64_t(params.packets) * sizeof(uint4);
  const int parts = params.parts;
  Call call(kDirectCombine, kElement<T>, params.max_tokens * params.packets);
  if (!begin_call(call, boxes)) return;

  if (warp_id() % 2 == 0) {
    const int64_t sent = int64_t(most_rows<kRanks>(params.counts, rank)) * kPeers * parts;
    Shares shares(call, boxes, kSending, sent, pair, pairs);
    for (uint32_t share = shares.take(); share < shares.count(); share = shares.take()) {
      const int at = int(share), part = at % parts, peer = (rank + 1 + at / parts % kPeers) % kRanks;
      const int place = at / parts / kPeers;
      if (place >= params.counts[peer]) continue;
      uint8_t* to = landing.buffers[peer] + params.returned + (int64_t(rank) * params.max_tokens + place) * row_bytes;
      const uint4* from = payload + (int64_t(peer) * params.max_tokens + place) * params.packets;
      copy_part(to, reinterpret_cast<const uint8_t*>(from), row_bytes, part, parts);
      release_part(landing, peer, rank, place * parts + part, call);
    }
  } else {
    const uint4* returned = reinterpret_cast<const uint4*>(landing.buffers[rank] + params.returned);
    Shares shares(call, boxes, kReceiving, int64_t(params.tokens) * parts, pair, pairs);
    for (uint32_t share = shares.take(); share < shares.count(); share = shares.take()) {
      const int token = int(share) / parts, part = int(share) % parts;
      const int* places = params.slots + int64_t(token) * kRanks;
      const int from_lane = lane_id();  // a lane waits for each rank's part
      const bool waits = from_lane < kRanks && from_lane != rank && places[from_lane] >= 0;
      const bool came = !waits || await_part(landing, boxes, call, from_lane, places[from_lane] * parts + part);
      const bool complete = __ballot_sync(kFullMask, !came) == 0;
      const uint4* rows[kRanks];  // null for ranks that have none
#pragma unroll
      for (int from = 0; from < kRanks; ++from) {
        const int64_t row = (int64_t(from) * params.max_tokens + places[from]) * params.packets;
        rows[from] = places[from] < 0 ? nullptr : (from == rank ? payload : returned) + row;
      }
      const Range range(params.packets, part, parts);
      for (int packet = range.begin + lane_id(); packet < range.end; packet += kWarpSize) {
        uint4 taken[kRanks];
#pragma unroll
        for (int from = 0; from < kRanks; ++from) {
          if (rows[from] != nullptr) taken[from] = rows[from][packet];
        }
        PacketSum<T> sum = {};
#pragma unroll
        for (int from = 0; from < kRanks; ++from) {
          if (rows[from] != nullptr) add_packet<T>(sum, taken[from]);
        }
        const uint4 result = complete ? round_packet<T>(sum) : nan_packet();
        static_cast<uint4*>(params.output)[int64_t(token) * params.packets + packet] = result;
      }
    }
  }
  end_call(call, boxes);
}

}  // namespace warploom::comm
