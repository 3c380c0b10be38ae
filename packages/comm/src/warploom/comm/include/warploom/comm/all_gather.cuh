// All-gather over peer memory: every rank sends its bytes to every peer.
#pragma once

#include "warploom/comm/mailbox.cuh"

namespace warploom::comm {

struct GatherParams {
  const void* input;  // [bytes]
  void* output;       // [kRanks, bytes]
  int64_t bytes;
};

constexpr int kPieceBytes = 8;  // of a packet, beside its flags

// Piece `index` of some bytes, with zeros past their end.
WL_DEVICE uint2 load_piece(const uint8_t* bytes, int64_t index, int64_t number, bool aligned) {
  const int64_t first = index * kPieceBytes;
  if (aligned && first + kPieceBytes <= number) return *reinterpret_cast<const uint2*>(bytes + first);
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < kPieceBytes; ++i) {
    if (first + i < number) words[i / 4] |= uint32_t(bytes[first + i]) << i % 4 * 8;
  }
  return {words[0], words[1]};
}

WL_DEVICE void store_piece(uint8_t* bytes, int64_t index, int64_t number, bool aligned, uint2 piece) {
  const int64_t first = index * kPieceBytes;
  if (aligned && first + kPieceBytes <= number) {
    *reinterpret_cast<uint2*>(bytes + first) = piece;
    return;
  }
#pragma unroll
  for (int i = 0; i < kPieceBytes; ++i) {
    if (first + i < number) bytes[first + i] = uint8_t((i < 4 ? piece.x : piece.y) >> i % 4 * 8);
  }
}

// Config: kRanks; kMaxThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads, 1)
    all_gather_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ GatherParams params) {
  constexpr int kRanks = Config::kRanks;
  const int rank = boxes.rank;
  const uint8_t* input = static_cast<const uint8_t*>(params.input);
  uint8_t* output = static_cast<uint8_t*>(params.output);
  const uint64_t addresses = reinterpret_cast<uint64_t>(input) | reinterpret_cast<uint64_t>(output) | uint64_t(params.bytes);
  const bool aligned = addresses % kPieceBytes == 0;
  const int64_t pieces = ceil_div(params.bytes, int64_t(kPieceBytes));
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  Call call(kAllGather, 0, params.bytes);
  if (!begin_call(call, boxes)) return;
  const FlaggedPackets kind(call);

  for (int64_t i = first; i < pieces; i += step) {
    const uint2 piece = load_piece(input, i, params.bytes, aligned);
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) {
      const int peer = (rank + hop) % kRanks;
      kind.send(boxes.half(peer, call) + rank * pieces + i, piece);
    }
    store_piece(output + rank * params.bytes, i, params.bytes, aligned, piece);
  }
  // Where a peer's data never came the output gets the pattern that is no number in any float type.
  const uint4 none = make_uint4(kEmpty, 0, kEmpty, 0);
  for (int64_t i = first; i < pieces; i += step) {
    uint4 taken[kRanks];
    const bool complete = take_packets(taken, boxes.half(rank, call) + i, pieces, boxes, call, 0, kind);
#pragma unroll
    for (int peer = 0; peer < kRanks; ++peer) {
      if (peer == rank) continue;
      const uint4 packet = complete ? taken[peer] : none;
      store_piece(output + peer * params.bytes, i, params.bytes, aligned, {packet.x, packet.z});
    }
  }
  end_call(call, boxes);
}

}  // namespace warploom::comm
