// Rotary position embeddings: pairs of components of queries and keys turn by angles that follow from the token's position
// (Su et al., 2021).
//
//   (a, b) -> (a cos t - b sin t, b cos t + a sin t),   t = position * frequency
//
// A block turns all heads of one token, which have its cosines and sines in common. Frequencies are float64, rounded to float32;
// angles are float32 products, as in the reference, and their cosines and sines come from float64, which needs no special care of
// large angles.
#pragma once

#include "warploom/attention/ragged.cuh"
#include "warploom/attention/rope_pair.cuh"
#include "warploom/convert.cuh"
#include "warploom/divisor.cuh"
#include "warploom/vec.cuh"

namespace warploom::attention {

// Of two entries, the first is of queries, the second of keys. Strides are in elements; components of a head are contiguous.
struct RopeParams {
  const void* x[2];       // [tokens, heads, head_dim]
  void* out[2];           // may be x
  const void* positions;  // [tokens], or null: by requests, or with a cache
  const void* indptr;     // [batch + 1], where each request's tokens start; those after the last are padding
  const void* offsets;    // [batch], position of each request's first token
  const void* cache;      // [positions, 2 * pairs]: cosines, then sines; or null: of frequencies
  int64_t x_stride[4];    // tokens and heads of queries, then of keys
  int64_t out_stride[4];
  int64_t cache_stride;
  double minus_log_theta;
  double scale;
  double low_freq_factor;
  double high_freq_factor;
  Divisor accesses;  // of a head: those that turn, then those of other components
  int heads[2];
  int pairs;
  int batch;
  int old_context_len;  // of Llama 3.1's rule; 0: none
};

// Radians per position.
WL_DEVICE float rope_frequency(const RopeParams& params, int pair) {
  const double exact = exp(double(2 * pair) / double(2 * params.pairs) * params.minus_log_theta);
  if (params.old_context_len == 0) return float(exact / params.scale);
  const double turns = params.old_context_len * exact / 6.283185307179586;
  const double kept = fmin(fmax((turns - params.low_freq_factor) / (params.high_freq_factor - params.low_freq_factor), 0.0), 1.0);
  return float((1.0 - kept) * exact / params.scale + kept * exact);
}

// Cosine and sine.
WL_DEVICE float2 turn_by(float angle) {
  double sine, cosine;
  sincospi(double(angle) * 0.3183098861837907, &sine, &cosine);
  return {float(cosine), float(sine)};
}

// Position of a token, or -1 for padding.
template <class Index>
WL_DEVICE int64_t position_of(const RopeParams& params, int64_t token) {
  if (params.positions) return static_cast<const Index*>(params.positions)[token];
  const auto* indptr = static_cast<const Index*>(params.indptr);
  const int request = request_of_row(indptr, params.batch, token);
  if (request < 0) return -1;
  return static_cast<const Index*>(params.offsets)[request] + token - indptr[request];
}

// Of a token's pairs, by all threads of a block.
template <class Config>
WL_DEVICE void find_turns(const RopeParams& params, int64_t position, float2* turns) {
  using Table = typename Config::Table;
  for (int pair = threadIdx.x; pair < params.pairs; pair += Config::kThreads) {
    if (params.cache) {
      const Table* row = static_cast<const Table*>(params.cache) + position * params.cache_stride;
      turns[pair] = {to_float(row[pair]), to_float(row[params.pairs + pair])};
    } else {
      turns[pair] = turn_by(float(position) * rope_frequency(params, pair));
    }
  }
}

// One access of kWidth components, or two of components that turn with each other. `turns` null: they stay.
template <class Config, class Target>
WL_DEVICE void turn_some(const typename Config::T* x, const Target& out, int number, int pairs, const float2* turns) {
  using T = typename Config::T;
  constexpr int kWidth = Config::kWidth;
  constexpr bool kInOneAccess = Config::kInterleave && kWidth > 1;
  constexpr int kPairs = kInOneAccess ? kWidth / 2 : kWidth;
  using Access = Vec<T, kWidth>;
  const int turning = pairs / kPairs;
  if (number >= turning) {
    const int at = 2 * pairs + (number - turning) * kWidth;
    out.store(at, Access::load(x + at));
    return;
  }
  const int first = kInOneAccess ? number * kWidth : Config::kInterleave ? 2 * number : number * kWidth;
  const int second = Config::kInterleave ? first + 1 : first + pairs;
  Access low = Access::load(x + first), high = low;
  if constexpr (!kInOneAccess) high = Access::load(x + second);
  if (turns) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      T& a = kInOneAccess ? low[2 * i] : low[i];
      T& b = kInOneAccess ? low[2 * i + 1] : high[i];
      const RopePair turned = RopePair{to_float(a), to_float(b)}.turned(turns[number * kPairs + i]);
      a = from_float<T>(turned.first), b = from_float<T>(turned.second);
    }
  }
  out.store(first, low);
  if constexpr (!kInOneAccess) out.store(second, high);
}

// Where components of a head go.
template <class T>
struct HeadInMemory {
  T* out;

  template <class Components>
  WL_DEVICE void store(int column, const Components& components) const { components.store(out + column); }
};

template <class T>
struct RopeOutputs {
  const RopeParams& params;
  int64_t token;

  WL_DEVICE HeadInMemory<T> head(int which, int number) const {
    const int64_t* stride = params.out_stride + 2 * which;
    return {static_cast<T*>(params.out[which]) + token * stride[0] + number * stride[1]};
  }
};

// The first `heads` of a token's heads, of which those of keys follow those of queries, by all threads of a block.
template <class Config, class Outputs>
WL_DEVICE void turn_heads(const RopeParams& params, const Outputs& outputs, int64_t token, int heads, const float2* turns) {
  using T = typename Config::T;
  const int accesses = int(params.accesses.divisor);
  for (int i = threadIdx.x; i < heads * accesses; i += Config::kThreads) {
    const int of_all = params.accesses.divide(i), number = params.accesses.remainder(i, of_all);
    const int which = of_all >= params.heads[0], head = of_all - which * params.heads[0];
    const int64_t* stride = params.x_stride + 2 * which;
    const T* x = static_cast<const T*>(params.x[which]) + token * stride[0] + head * stride[1];
    turn_some<Config>(x, outputs.head(which, head), number, params.pairs, turns);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads) rope_kernel(const __grid_constant__ RopeParams params) {
  using T = typename Config::T;
  __shared__ float2 turns[Config::kMaxPairs];
  const int64_t token = blockIdx.x, position = position_of<typename Config::Index>(params, token);
  const bool turns_some = params.cache || params.positions || position >= 0;
  find_turns<Config>(params, position, turns);
  __syncthreads();
  const RopeOutputs<T> outputs{params, token};
  turn_heads<Config>(params, outputs, token, params.heads[0] + params.heads[1], turns_some ? turns : nullptr);
}

}  // namespace warploom::attention
