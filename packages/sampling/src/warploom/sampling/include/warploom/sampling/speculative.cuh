// Chain speculative verification: accept a prefix of the draft tokens, draw one more.
//
// Every block of a request decides by itself how many tokens are accepted; then all of them race through one row, or the
// difference of two, which is read once.
#pragma once

#include "warploom/sampling/draw.cuh"

namespace warploom::sampling {

struct SpeculativeParams {
  const void* draft;     // [batch, n, vocab]
  const void* target;    // [batch, n + 1, vocab]
  const void* draft_ids; // [batch, n], int32 or int64
  int* tokens;           // [batch, n + 1]
  int* accepted;         // [batch], added to
  int* emitted;          // [batch], added to
  bool* valid;           // [batch]
  const int64_t* seed;
  const int64_t* offset;
  int64_t draft_strides[3];
  int64_t target_strides[3];
  int64_t ids_strides[2];
  int64_t tokens_strides[2];
  int64_t accepted_stride;
  int64_t emitted_stride;
  int64_t seed_stride;
  int64_t offset_stride;
  int64_t seed_value;
  int64_t offset_value;
  int n;
  int vocab;
  int ids_are_64_bit;
  int rows_have_seeds;

  WL_DEVICE int64_t draft_id(int64_t row, int i) const {
    return load_index(draft_ids, ids_are_64_bit, row * ids_strides[0] + i * ids_strides[1]);
  }
  WL_DEVICE bool known(int64_t id) const { return id >= 0 && id < vocab; }
};

constexpr uint32_t kAcceptBlocks = 1u << 31;

// What the target has more than the draft, or all of it without a draft; four tokens a group, in float32.
template <class T>
struct DifferenceRow {
  const T* target;
  const T* draft;  // or null
  int64_t target_stride;
  int64_t draft_stride;
  int vocab;

  WL_DEVICE float load_token(int64_t token) const {
    const float mine = to_float(target[token * target_stride]);
    return draft ? mine - to_float(draft[token * draft_stride]) : mine;
  }
  WL_DEVICE static bool aligned(const T* row, int64_t stride) {
    return stride == 1 && reinterpret_cast<uint64_t>(row) % (kQuad * sizeof(T)) == 0;
  }
  WL_DEVICE bool aligned() const { return aligned(target, target_stride) && (!draft || aligned(draft, draft_stride)); }

  WL_DEVICE Packed load(int group, bool vectors) const {
    const int first = group * kQuad;
    Vec<float, kQuad> values = Vec<float, kQuad>::from_raw(nothing<float>());
    if (vectors && first + kQuad <= vocab) {
      const auto mine = Vec<T, kQuad>::load_streaming(target + first);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) values[i] = to_float(mine[i]);
      if (draft) {
        const auto less = Vec<T, kQuad>::load_streaming(draft + first);
#pragma unroll
        for (int i = 0; i < kQuad; ++i) values[i] -= to_float(less[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        if (first + i < vocab) values[i] = load_token(first + i);
      }
    }
    return values.raw();
  }
};

// As RowStream, but without a ring: each batch is loaded where it is visited.
template <class T>
struct DifferenceStream {
  DifferenceRow<T> row;
  int first;
  int step;

  WL_DEVICE int groups() const { return ceil_div(row.vocab, kQuad); }

  template <class Visitor>
  WL_DEVICE void visit(Visitor&& visitor) const {
    const bool vectors = row.aligned();
    for_batches(threadIdx.x, [&](int batch) {
      Packed packed[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int group = batch + i * kBatchStep<float>;
        packed[i] = group < groups() ? row.load(group, vectors) : nothing<float>();
      }
      visitor(packed, batch);
    });
  }
  template <class Visitor>
  WL_DEVICE void for_batches(int thread, Visitor&& visitor) const {
#pragma unroll 1
    for (int unit = first - int(threadIdx.x) + thread; batch_of<float>(unit) < groups(); unit += step) {
      visitor(batch_of<float>(unit));
    }
  }
};

struct Acceptance {
  int length;  // tokens before the first that is not accepted
  int passed;  // tokens that pass on their own
};

template <class T>
WL_DEVICE Acceptance accept(const SpeculativeParams& params, int64_t row, const Draws& draws, int& shared_length) {
  const T* draft = static_cast<const T*>(params.draft) + row * params.draft_strides[0];
  const T* target = static_cast<const T*>(params.target) + row * params.target_strides[0];
  if (threadIdx.x == 0) shared_length = params.n;
  __syncthreads();
  int passed = 0;
  for (int start = 0; start < params.n; start += int(blockDim.x)) {
    const int i = start + int(threadIdx.x);
    bool passes = false;
    if (i < params.n) {
      const int64_t id = params.draft_id(row, i);
      if (params.known(id)) {
        const float u = uniform_from(draws.word(kAcceptBlocks + uint32_t(i / 4), i % 4));
        const float of_draft = to_float(draft[i * params.draft_strides[1] + id * params.draft_strides[2]]);
        const float of_target = to_float(target[i * params.target_strides[1] + id * params.target_strides[2]]);
        passes = __fmul_rn(u, of_draft) < of_target;
      }
      if (!passes) atomicMin(&shared_length, i);
    }
    passed += __syncthreads_count(passes);
  }
  __syncthreads();
  return {shared_length, passed};
}

// Grid: requests x blocks of a request, those of one next to each other (and one cluster if more than one).
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    speculative_kernel(const __grid_constant__ SpeculativeParams params) {
  using T = typename Config::In;
  __shared__ RowReduceStorage reduce_storage;
  __shared__ RaceStorage race_storage;
  __shared__ int shared_length;
  const int64_t request = row_index();
  RowReduce reduce(reduce_storage, row_part(), row_parts());
  const Draws draws = draws_of(params, request);
  const Acceptance accepted = accept<T>(params, request, draws, shared_length);

  const int at = accepted.length;
  const bool rejected = at < params.n && params.known(params.draft_id(request, at));
  const T* target = static_cast<const T*>(params.target) + request * params.target_strides[0] + at * params.target_strides[1];
  const T* draft = static_cast<const T*>(params.draft) + request * params.draft_strides[0] + at * params.draft_strides[1];
  DifferenceStream<T> stream{{target, rejected ? draft : nullptr, params.target_strides[2], params.draft_strides[2], params.vocab},
                             row_part() * int(blockDim.x) + int(threadIdx.x), row_parts() * int(blockDim.x)};

  const float all = negative_infinity();
  RowScan<ProbWeights> scan(0.0f);
  RaceState state;
  for (bool again = false;; again = true) {
    stream.visit([&](const Packed(&groups)[kBatch], int batch) {
      scan.template enter<float, false>(groups, batch, draws, all);
    });
    state = race_of_row(scan, reduce, race_storage);
    // Equal distributions reject by rounding alone; then the target's own is the right one.
    if (again || !rejected || state.reference != 0) break;
    stream.row.draft = nullptr;
    scan = RowScan<ProbWeights>(0.0f);
    __syncthreads();  // before `race_storage` is used again
  }

  const bool good = can_draw<ProbWeights>(state);
  int last = 0;
  if (good) {
    settle_contenders<float>(state, scan, stream, reduce, all, draws);
    if (row_part() != 0) return;
    if (warp_id() == 0) {
      last = winner_of_batch<float>(stream.row, state.batch, all, ProbWeights(state.reference, 0.0f), draws);
    }
  }
  if (row_part() != 0 || warp_id() != 0) return;
  int* tokens = params.tokens + request * params.tokens_strides[0];
  for (int i = lane_id(); i <= params.n; i += kWarpSize) {
    tokens[i * params.tokens_strides[1]] = i < at ? int(params.draft_id(request, i)) : i == at ? last : -1;
  }
  if (lane_id() != 0) return;
  params.accepted[request * params.accepted_stride] += accepted.passed;
  params.emitted[request * params.emitted_stride] += at;
  params.valid[request] = good;
}

}  // namespace warploom::sampling
