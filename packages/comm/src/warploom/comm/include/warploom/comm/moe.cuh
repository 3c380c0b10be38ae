// Expert parallelism over peer memory, for few tokens: each token's row goes once to every rank that owns one of its experts
// (dispatch), and the ranks' results come back and are added (combine).
#pragma once

#include "warploom/comm/all_gather.cuh"
#include "warploom/comm/message.cuh"

namespace warploom::comm {

constexpr int kMaxPayloads = 8;

struct DispatchParams {
  const void* payloads[kMaxPayloads];  // [tokens, row_bytes[i]]
  void* received[kMaxPayloads];        // [kRanks, max_tokens, row_bytes[i]]
  int64_t row_bytes[kMaxPayloads];
  const int* slots;                // [tokens, kRanks]
  const int* sent;                 // [kRanks]
  int* counts;                     // [kRanks]: rows that came from each rank
  int tokens;
  int max_tokens;
  int num_payloads;
  int row_pieces;                  // of all payloads, each in whole pieces
};

// A piece of a token's row: the payloads one after the other, each in whole pieces.
struct RowPiece {
  int payload;
  int64_t index;  // in the payload's row

  WL_DEVICE RowPiece(const DispatchParams& params, int64_t of_row) : payload(0), index(of_row) {
    for (; payload + 1 < params.num_payloads; ++payload) {
      const int64_t pieces = ceil_div(params.row_bytes[payload], int64_t(kPieceBytes));
      if (index < pieces) break;
      index -= pieces;
    }
  }
};

WL_DEVICE bool rows_are_aligned(const void* rows, int64_t row_bytes) {
  return (reinterpret_cast<uint64_t>(rows) | uint64_t(row_bytes)) % kPieceBytes == 0;
}

WL_DEVICE uint2 load_row_piece(const DispatchParams& params, int64_t token, const RowPiece& at) {
  const int64_t bytes = params.row_bytes[at.payload];
  const uint8_t* rows = static_cast<const uint8_t*>(params.payloads[at.payload]);
  return load_piece(rows + token * bytes, at.index, bytes, rows_are_aligned(rows, bytes));
}

WL_DEVICE void store_row_piece(const DispatchParams& params, int64_t row, const RowPiece& at, uint2 piece) {
  const int64_t bytes = params.row_bytes[at.payload];
  uint8_t* rows = static_cast<uint8_t*>(params.received[at.payload]);
  store_piece(rows + row * bytes, at.index, bytes, rows_are_aligned(rows, bytes), piece);
}

// Config: kRanks; kMaxThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    dispatch_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ DispatchParams params) {
  constexpr int kRanks = Config::kRanks;
  const int rank = boxes.rank;
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, step = int64_t(gridDim.x) * blockDim.x;
  Call call(kDispatch, 0, params.max_tokens * params.row_pieces);
  if (!begin_call(call, boxes)) return;
  const FlaggedPackets kind(call);
  // A half: for each block of the launch the number of rows of every rank, then the rows of every rank.
  const auto number_slot = [&](int owner, int from, int block) { return boxes.half(owner, call) + from * kMaxBlocks + block; };
  const auto row_slot = [&](int owner, int from, int64_t place, int64_t of_row) {
    const int64_t row = int64_t(from) * params.max_tokens + place;
    return boxes.half(owner, call) + kRanks * kMaxBlocks + row * params.row_pieces + of_row;
  };

  // All blocks wait for numbers, so that none needs another's.
  if (threadIdx.x < kRanks && int(threadIdx.x) != rank) {
    for (int block = blockIdx.x; block < kMaxBlocks; block += gridDim.x) {
      kind.send(number_slot(threadIdx.x, rank, block), {uint32_t(params.sent[threadIdx.x]), 0});
    }
  }
  // Rows to peers, and this rank's own straight to their places.
  for (int64_t i = first; i < int64_t(params.tokens) * params.row_pieces; i += step) {
    const int64_t token = i / params.row_pieces, of_row = i % params.row_pieces;
    const RowPiece at(params, of_row);
    const uint2 piece = load_row_piece(params, token, at);
    int places[kRanks];  // all loaded before something is stored
#pragma unroll
    for (int hop = 0; hop < kRanks; ++hop) places[hop] = params.slots[token * kRanks + (rank + hop) % kRanks];
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      if (places[hop] >= 0) kind.send(row_slot((rank + hop) % kRanks, rank, places[hop], of_row), piece);
    }
    if (places[0] >= 0) store_row_piece(params, int64_t(rank) * params.max_tokens + places[0], at, piece);
  }
  // Numbers of all peers, then their rows. A block takes the numbers that were sent for blocks which were not launched, too.
  __shared__ int numbers[kRanks];
  if (threadIdx.x < kRanks) {
    const int peer = threadIdx.x;
    uint4 packet = make_uint4(uint32_t(params.sent[rank]), 0, 0, 0);
    for (int block = blockIdx.x; block < kMaxBlocks && peer != rank; block += gridDim.x) {
      if (!take_packet(packet, number_slot(rank, peer, block), boxes, call, peer, 0, kind)) packet.x = 0;
    }
    const int number = min(int(packet.x), params.max_tokens);
    numbers[peer] = peer == rank ? 0 : number;
    if (blockIdx.x == 0) params.counts[peer] = number;
  }
  __syncthreads();
  int64_t rows = 0;
#pragma unroll
  for (int peer = 0; peer < kRanks; ++peer) rows += numbers[peer];
  constexpr int kAhead = 4;  // pieces that are looked at before one is waited for
  const int64_t pieces = rows * params.row_pieces;
  for (int64_t i = first; i < pieces; i += kAhead * step) {
    uint4 packets[kAhead];
    int peers[kAhead], places[kAhead], of_rows[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t piece = i + k * step;
      if (piece >= pieces) break;
      places[k] = int(piece / params.row_pieces), of_rows[k] = int(piece % params.row_pieces);
      for (peers[k] = 0; places[k] >= numbers[peers[k]]; ++peers[k]) places[k] -= numbers[peers[k]];
      packets[k] = kind.load(row_slot(rank, peers[k], places[k], of_rows[k]));
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (i + k * step >= pieces) break;
      uint4* slot = row_slot(rank, peers[k], places[k], of_rows[k]);
      if (!await_packet(packets[k], slot, boxes, call, peers[k], 1, kind)) packets[k] = nan_packet();
      const int64_t row = int64_t(peers[k]) * params.max_tokens + places[k];
      store_row_piece(params, row, RowPiece(params, of_rows[k]), {packets[k].x, packets[k].z});
    }
  }
  end_call(call, boxes);
}

struct CombineParams {
  const void* payload;    // [kRanks, max_tokens, packets], aligned to 16 bytes
  void* output;           // [tokens, packets]
  const int* slots;   // [tokens, kRanks], of the dispatch
  const int* counts;  // [kRanks]
  int tokens;
  int max_tokens;
  int packets;        // of a row
};

// Of what goes back to the peers, the most rows that one gets.
template <int kRanks>
WL_DEVICE int most_rows(const int* counts, int rank) {
  int most = 0;
#pragma unroll
  for (int hop = 1; hop < kRanks; ++hop) most = max(most, counts[(rank + hop) % kRanks]);
  return most;
}

// Config: T, the element type; kRanks; kMaxThreads, whole warps.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    combine_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ CombineParams params) {
  using T = typename Config::T;
  constexpr int kRanks = Config::kRanks;
  const int rank = boxes.rank;
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, step = int64_t(gridDim.x) * blockDim.x;
  Call call(kCombine, kElement<T>, params.max_tokens * params.packets);
  if (!begin_call(call, boxes)) return;
  const uint4* payload = static_cast<const uint4*>(params.payload);
  const auto slot = [&](int owner, int from, int64_t place, int64_t packet) {
    return boxes.half(owner, call) + (int64_t(from) * params.max_tokens + place) * params.packets + packet;
  };

  const int most = most_rows<kRanks>(params.counts, rank);
  for (int64_t i = first; i < int64_t(most) * params.packets; i += step) {
    uint4 sent[kRanks];  // all loaded before one is stored
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      const int peer = (rank + hop) % kRanks;
      const bool is_sent = i < int64_t(params.counts[peer]) * params.packets;
      if (is_sent) sent[hop] = payload[int64_t(peer) * params.max_tokens * params.packets + i];
    }
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      const int peer = (rank + hop) % kRanks;
      if (i < int64_t(params.counts[peer]) * params.packets) send_packet(slot(peer, rank, 0, i), sent[hop]);
    }
  }
  for (int64_t i = first; i < int64_t(params.tokens) * params.packets; i += step) {
    const int64_t token = i / params.packets, packet = i % params.packets;
    int places[kRanks];
    uint4 taken[kRanks];  // all looked at before one is waited for
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) places[peer] = params.slots[token * kRanks + peer];
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) {
      if (places[peer] < 0) continue;
      const int64_t own = (int64_t(rank) * params.max_tokens + places[peer]) * params.packets + packet;
      taken[peer] = peer == rank ? payload[own] : load_relaxed_system(slot(rank, peer, places[peer], packet));
    }
    PacketSum<T> sum = {};
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) {
      if (places[peer] < 0) continue;
      const bool came = peer == rank || await_packet(taken[peer], slot(rank, peer, places[peer], packet), boxes, call, peer, 0);
      add_packet<T>(sum, came ? taken[peer] : nan_packet());
    }
    static_cast<uint4*>(params.output)[i] = round_packet<T>(sum);
  }
  end_call(call, boxes);
}

}  // namespace warploom::comm
