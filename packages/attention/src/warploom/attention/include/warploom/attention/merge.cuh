// Merging attention states: outputs over disjoint sets of keys, each with its log-sum-exp, become the output over all keys.
//
//   out = sum_j 2^(s_j - t) v_j,   t = log2 sum_j 2^(s_j)
//
// A state with s = -inf saw no key and is ignored, whatever its v holds; if none saw a key, out is 0 and t is -inf. NaN in a
// log-sum-exp makes its row NaN. Sums are float32. The recurrence is that of online softmax (Milakov and Gimelshein, 2018).
#pragma once

#include "warploom/convert.cuh"
#include "warploom/global_store.cuh"

namespace warploom::attention {

// A partial sum over states for kVec components of one head: value = sum_j 2^(s_j - max) v_j, weight = sum_j 2^(s_j - max).
template <int kVec>
struct MergedState {
  float value[kVec] = {};
  float weight = 0.0f;
  float max = negative_infinity();

  // 2^(s - max), where max is at least s or nothing was seen; finite operands for exp2 keep inf - inf out.
  WL_DEVICE static float relative_weight(float s, float max) {
    return exp2_approx(s - (max == negative_infinity() ? 0.0f : max));
  }

  WL_DEVICE void raise_max(float new_max) {
    const float scale = relative_weight(max, new_max);
#pragma unroll
    for (int i = 0; i < kVec; ++i) value[i] *= scale;
    weight *= scale;
    max = new_max;
  }

  // Add a state whose s is not above max.
  template <class In>
  WL_DEVICE void add(const Vec<In, kVec>& v, float s) {
    if (s == negative_infinity()) return;  // v may hold anything, NaN too
    const float w = relative_weight(s, max);
#pragma unroll
    for (int i = 0; i < kVec; ++i) value[i] = fmaf(w, to_float(v[i]), value[i]);
    weight += w;
  }

  template <class Out>
  WL_DEVICE Vec<Out, kVec> output() const {
    const float scale = weight == 0.0f ? 0.0f : __fdividef(1.0f, weight);
    Vec<Out, kVec> out;
#pragma unroll
    for (int i = 0; i < kVec; ++i) out[i] = from_float<Out>(value[i] * scale);
    return out;
  }

  WL_DEVICE float lse() const { return weight == 0.0f ? negative_infinity() : max + log2f(weight); }
};

// Strides are in elements; components of a head are contiguous. `to_log2` turns a log-sum-exp into base 2, `from_log2` back.
struct MergeStatesParams {
  const void* v;           // [rows, states, heads, dim]
  const float* s;          // [rows, states, heads]
  void* out;               // [rows, heads, dim]
  float* out_s;            // [rows, heads]
  int64_t v_stride[3];
  int64_t s_stride[3];
  int64_t out_stride[2];
  int64_t out_s_stride[2];
  uint32_t row_heads;      // rows * heads
  uint32_t heads;
  int num_states;
  int head_vectors;        // vectors of kVec components in a head
  float to_log2;
  float from_log2;
};

// Adds the states first, first + step, ... of one head. kUnroll states are in flight before the first is used.
template <class Config>
WL_DEVICE MergedState<Config::kVec> merge_every(const typename Config::In* v, const float* s, int64_t v_step, int64_t s_step,
                                                int first, int step, int end, float to_log2) {
  using In = typename Config::In;
  constexpr int kVec = Config::kVec;
  constexpr int kUnroll = Config::kUnroll;
  MergedState<kVec> merged;
  for (int base = first; base < end; base += step * kUnroll) {
    Vec<In, kVec> values[kUnroll];
    float lse[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int state = base + i * step;
      lse[i] = negative_infinity();
      if (state < end) {
        lse[i] = s[state * s_step] * to_log2;
        values[i] = Vec<In, kVec>::load_streaming(v + state * v_step);
      }
    }
    float max = merged.max;
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) max = fmaxf(max, lse[i]);
    merged.raise_max(max);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) merged.add(values[i], lse[i]);
  }
  return merged;
}

// Merges the partial sums of the groups of a head, blockDim.z of them (a power of two), into group 0 by halving.
template <int kVec>
WL_DEVICE void merge_groups(MergedState<kVec>& mine, float* scratch) {
  const int half_block = blockDim.x * blockDim.y * blockDim.z / 2;
  const int slot = threadIdx.y * blockDim.x + threadIdx.x;
  const int group_slots = blockDim.x * blockDim.y;
  for (int half = blockDim.z / 2; half > 0; half /= 2) {
    const int group = threadIdx.z;
    if (group >= half && group < 2 * half) {
      float* to = scratch + (group - half) * group_slots + slot;
      to[0] = mine.max;
      to[half_block] = mine.weight;
#pragma unroll
      for (int i = 0; i < kVec; ++i) to[(2 + i) * half_block] = mine.value[i];
    }
    __syncthreads();
    if (group < half) {
      const float* from = scratch + group * group_slots + slot;
      const float other_max = from[0];
      mine.raise_max(fmaxf(mine.max, other_max));
      const float scale = MergedState<kVec>::relative_weight(other_max, mine.max);
      mine.weight = fmaf(scale, from[half_block], mine.weight);
#pragma unroll
      for (int i = 0; i < kVec; ++i) mine.value[i] = fmaf(scale, from[(2 + i) * half_block], mine.value[i]);
    }
    __syncthreads();
  }
}

// Config: In, Out, kVec, kUnroll, kMaxThreads. Block (lanes of a head, heads, groups of states); grid (heads, parts of a head).
// Dynamic shared memory: (2 + kVec) floats for every second thread if there is more than one group.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads) merge_states_kernel(const __grid_constant__ MergeStatesParams params) {
  using In = typename Config::In;
  using Out = typename Config::Out;
  constexpr int kVec = Config::kVec;
  extern __shared__ float scratch[];

  const uint32_t row_head = blockIdx.x * blockDim.y + threadIdx.y;
  const int vector = blockIdx.y * blockDim.x + threadIdx.x;
  const bool active = row_head < params.row_heads && vector < params.head_vectors;
  const int64_t row = row_head / params.heads;
  const int64_t head = row_head - uint32_t(row) * params.heads;
  const int64_t component = int64_t(vector) * kVec;

  MergedState<kVec> merged;
  if (active) {
    const In* v = static_cast<const In*>(params.v) + row * params.v_stride[0] + head * params.v_stride[2] + component;
    const float* s = params.s + row * params.s_stride[0] + head * params.s_stride[2];
    merged = merge_every<Config>(v, s, params.v_stride[1], params.s_stride[1], threadIdx.z, blockDim.z, params.num_states,
                                 params.to_log2);
  }
  if (blockDim.z > 1) merge_groups(merged, scratch);
  if (!active || threadIdx.z != 0) return;

  Out* out = static_cast<Out*>(params.out) + row * params.out_stride[0] + head * params.out_stride[1] + component;
  store_global(out, merged.template output<Out>());
  if (vector == 0) params.out_s[row * params.out_s_stride[0] + head * params.out_s_stride[1]] = merged.lse() * params.from_log2;
}

struct MergeStateParams {
  const void* v[2];     // two states [rows, heads, dim]
  const float* s[2];    // [rows, heads]
  void* out;            // may be v[0]
  float* out_s;         // may be s[0]
  const bool* mask;     // [rows], rows to merge; null: all. A row that is not merged is not written.
  int64_t v_stride[4];  // rows and heads of v[0], then of v[1]
  int64_t s_stride[4];
  int64_t out_stride[2];
  int64_t out_s_stride[2];
  int64_t mask_stride;
  uint32_t row_heads;   // rows * heads
  uint32_t heads;
  float to_log2;
  float from_log2;
};

// Config: In, Out, kVec, kMaxThreads. Block (vectors of a head, heads); grid (heads). In place is allowed: the threads of a
// head are all in one block, which reads both log-sum-exps before it writes one.
template <class Config>
__global__ void __launch_bounds__(Config::kMaxThreads) merge_state_kernel(const __grid_constant__ MergeStateParams params) {
  using In = typename Config::In;
  using Out = typename Config::Out;
  constexpr int kVec = Config::kVec;

  const uint32_t row_head = blockIdx.x * blockDim.y + threadIdx.y;
  const int64_t row = row_head / params.heads;
  const int64_t head = row_head - uint32_t(row) * params.heads;
  const int64_t component = int64_t(threadIdx.x) * kVec;
  const bool active = row_head < params.row_heads && (params.mask == nullptr || params.mask[row * params.mask_stride]);

  Vec<In, kVec> values[2];
  float lse[2];
  if (active) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      lse[i] = params.s[i][row * params.s_stride[2 * i] + head * params.s_stride[2 * i + 1]] * params.to_log2;
      values[i] = Vec<In, kVec>::load_streaming(static_cast<const In*>(params.v[i]) + row * params.v_stride[2 * i] +
                                                head * params.v_stride[2 * i + 1] + component);
    }
  }
  __syncthreads();
  if (!active) return;

  MergedState<kVec> merged;
  merged.raise_max(fmaxf(lse[0], lse[1]));
#pragma unroll
  for (int i = 0; i < 2; ++i) merged.add(values[i], lse[i]);
  Out* out = static_cast<Out*>(params.out) + row * params.out_stride[0] + head * params.out_stride[1] + component;
  store_global(out, merged.template output<Out>());
  if (threadIdx.x == 0)
    params.out_s[row * params.out_s_stride[0] + head * params.out_s_stride[1]] = merged.lse() * params.from_log2;
}

}  // namespace warploom::attention
