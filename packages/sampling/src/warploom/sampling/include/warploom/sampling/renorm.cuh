// The distribution that top-k, top-p and min-p leave of a row, and rows masked to their k largest logits.
//
// The row stays in shared memory while its thresholds are found exactly; then it is written once.
#pragma once

#include "warploom/global_store.cuh"
#include "warploom/sampling/row_filter.cuh"

namespace warploom::sampling {

// Writes result(value) for every token of this thread; vectors where the row of `out` allows it.
template <class Out, class Weights, class Share, class Result>
WL_DEVICE void write_row(Share& share, Out* out, int64_t stride, Result result) {
  using T = typename Share::Element;
  constexpr int kWidth = kVecWidth<T>;
  constexpr int kOutBytes = kWidth * int(sizeof(Out));
  constexpr int kPiece = kOutBytes > 16 ? 16 / int(sizeof(Out)) : kWidth;  // elements of a store
  const bool vectors = stride == 1 && reinterpret_cast<uint64_t>(out) % (kPiece * sizeof(Out)) == 0;
  const int whole = vectors ? share.row.whole_groups() : 0;
  share.template visit_groups<kTogether<T>>(false, [&](const Packed(&groups)[kTogether<T>], int start) {
#pragma unroll
    for (int i = 0; i < kTogether<T>; ++i) {
      float values[kWidth];
      numbers_of<T, Weights>(groups[i], values);
      const int group = start + i * kBatchStep<T>, first = group * kWidth;
      if (group < whole) {
#pragma unroll
        for (int piece = 0; piece < kWidth; piece += kPiece) {
          Vec<Out, kPiece> some;
#pragma unroll
          for (int j = 0; j < kPiece; ++j) some[j] = from_float<Out>(result(values[piece + j]));
          store_global(out + first + piece, some);
        }
        continue;
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (first + j < share.row.vocab) out[(first + j) * stride] = from_float<Out>(result(values[j]));
      }
    }
  });
}

// Grids: rows x blocks of a row, those of one row next to each other (and one cluster if more than one).
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    renorm_kernel(const __grid_constant__ DrawParams params) {
  using Filter = RowFilter<Config>;
  using Weights = typename Filter::Weights;
  using Out = typename Config::Out;
  extern __shared__ __align__(128) Packed held[];
  __shared__ RowFilterStorage storage;
  const int64_t row = row_index();
  storage.threshold.table.open();
  RowReduce reduce(storage.reduce, row_part(), row_parts());
  typename Filter::Share share(params.load_row<typename Filter::T>(row), row_part(), row_parts(), held, storage.landed);
  __syncthreads();
  Filter filter(params, storage, reduce, share, row);
  const float maximum = filter.find_all();
  Out* out = static_cast<Out*>(params.probs) + row * params.probs_stride;
  if (filter.bad) {
    const bool empty = maximum == (Config::kFromLogits ? negative_infinity() : 0.0f) && filter.scale == filter.scale;
    const float fill = empty ? 0.0f : quiet_nan();
    return write_row<Out, Weights>(share, out, params.prob_stride, [=](float) { return fill; });
  }
  const Weights weights(maximum, filter.scale);
  const float minimum = fmaxf(filter.minimum, filter.nucleus);
  float mass = float(filter.mass);
  if (!(mass == mass)) mass = row_masses(share, reduce, weights, maximum, minimum).total;
  const float norm = 1.0f / mass;
  write_row<Out, Weights>(share, out, params.prob_stride, [=](float value) {
    return value >= minimum ? weights.approximate(value) * norm : 0.0f;
  });
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    top_k_mask_kernel(const __grid_constant__ DrawParams params) {
  using Filter = RowFilter<Config>;
  using T = typename Config::In;
  extern __shared__ __align__(128) Packed held[];
  __shared__ RowFilterStorage storage;
  const int64_t row = row_index();
  storage.threshold.table.open();
  RowReduce reduce(storage.reduce, row_part(), row_parts());
  typename Filter::Share share(params.load_row<T>(row), row_part(), row_parts(), held, storage.landed);
  __syncthreads();
  Filter filter(params, storage, reduce, share, row);
  const RowMaximum largest = largest_value<LogitWeights>(share, true);
  const float maximum = reduce(largest).value;
  float minimum = negative_infinity();
  const bool masks = maximum == maximum && filter.filters().selects(params.vocab);
  if (masks) minimum = filter.find_top_k(maximum, filter.lowest(maximum, largest.value));
  write_row<T, LogitWeights>(share, static_cast<T*>(params.probs) + row * params.probs_stride, params.prob_stride,
                             [=](float value) { return value < minimum ? negative_infinity() : value; });
}

}  // namespace warploom::sampling
