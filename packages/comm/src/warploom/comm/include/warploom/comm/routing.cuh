// Which token goes to which rank, and where it lies among those that the rank gets: bit for bit `routing.py`.
#pragma once

#include "warploom/comm/mailbox.cuh"

namespace warploom::comm {

struct RoutingParams {
  const void* experts;  // [tokens, top_k], int32 or int64
  int* slots;       // [tokens, kRanks]: place among the tokens for a rank, -1 for those that do not go there
  int* sent;        // [kRanks]: how many go
  int tokens;
  int top_k;
  int num_experts;
  int words;        // of an expert's number: 1 or 2, of which the first counts
};

// The ranks that own experts of a token, a bit each.
template <int kRanks>
WL_DEVICE uint32_t ranks_of_token(const RoutingParams& params, int token) {
  const int local = params.num_experts / kRanks;
  const int* experts = static_cast<const int*>(params.experts) + int64_t(token) * params.top_k * params.words;
  uint32_t ranks = 0;
  for (int i = 0; i < params.top_k; ++i) {
    const int expert = experts[i * params.words];
    const bool is_whole = params.words == 1 || experts[i * params.words + 1] == 0;  // not above 32 bits, nor negative
    if (is_whole && expert >= 0 && expert < params.num_experts) ranks |= 1u << expert / local;
  }
  return ranks;
}

// One block. Config: kRanks; kThreads.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1) route_tokens_kernel(const __grid_constant__ RoutingParams params) {
  constexpr int kRanks = Config::kRanks, kWarps = Config::kThreads / kWarpSize;
  __shared__ int of_warps[2][kWarps][kRanks];
  int before[kRanks];  // tokens of earlier rounds
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) before[rank] = 0;

  for (int first = 0, turn = 0; first < params.tokens; first += Config::kThreads, turn ^= 1) {
    const int token = first + int(threadIdx.x);
    const uint32_t ranks = token < params.tokens ? ranks_of_token<kRanks>(params, token) : 0;
    int place[kRanks];
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      const uint32_t chosen = __ballot_sync(kFullMask, ranks >> rank & 1);
      place[rank] = __popc(chosen & ((1u << lane_id()) - 1));
      if (lane_id() == 0) of_warps[turn][warp_id()][rank] = __popc(chosen);
    }
    __syncthreads();
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      place[rank] += before[rank];
      for (int warp = 0; warp < kWarps; ++warp) {
        const int count = of_warps[turn][warp][rank];
        if (warp < warp_id()) place[rank] += count;
        before[rank] += count;
      }
      if (token < params.tokens) params.slots[int64_t(token) * kRanks + rank] = ranks >> rank & 1 ? place[rank] : -1;
    }
  }
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
    if (threadIdx.x == 0) params.sent[rank] = before[rank];
  }
}

}  // namespace warploom::comm
