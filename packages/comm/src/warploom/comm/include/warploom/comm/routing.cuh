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
  __shared__ int of_warps[kRanks][kWarps];  // tokens for a rank: of a warp, then of those before it
  __shared__ int of_round[kRanks];
  int before[kRanks];  // tokens of earlier rounds
  wait_for_previous_kernel();
  allow_next_kernel();  // it waits for the end of this one, which waits for no one
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) before[rank] = 0;

  for (int first = 0; first < params.tokens; first += Config::kThreads) {
    const int token = first + int(threadIdx.x);
    const uint32_t ranks = token < params.tokens ? ranks_of_token<kRanks>(params, token) : 0;
    int place[kRanks];
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      const uint32_t chosen = __ballot_sync(kFullMask, ranks >> rank & 1);
      place[rank] = before[rank] + __popc(chosen & ((1u << lane_id()) - 1));
      if (lane_id() == 0) of_warps[rank][warp_id()] = __popc(chosen);
    }
    __syncthreads();
    if (threadIdx.x < kRanks) {
      int sum = 0;
      for (int& number : of_warps[threadIdx.x]) {
        const int own = number;
        number = sum, sum += own;
      }
      of_round[threadIdx.x] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      place[rank] += of_warps[rank][warp_id()];
      before[rank] += of_round[rank];
      if (token < params.tokens) params.slots[int64_t(token) * kRanks + rank] = ranks >> rank & 1 ? place[rank] : -1;
    }
    __syncthreads();  // all have read before the next round writes
  }
#pragma unroll
  for (int rank = 0; rank < kRanks; ++rank) {
    if (threadIdx.x == 0) params.sent[rank] = before[rank];
  }
}

}  // namespace warploom::comm
