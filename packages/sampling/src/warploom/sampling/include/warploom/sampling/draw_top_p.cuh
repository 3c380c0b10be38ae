// A draw from the nucleus of a row, in two passes over it: a race among all tokens, and the masses above those that arrive first.
// An outsider rules out all values up to its own, so that the next one to ask about is the first arrival of a larger value:
// three of them settle nearly every row.
#pragma once

#include "warploom/sampling/arrivals.cuh"
#include "warploom/sampling/draw.cuh"
#include "warploom/sampling/row_stream.cuh"
#include "warploom/sync.cuh"

namespace warploom::sampling {

// Tokens that are asked about at once: each larger than those that arrive before it.
constexpr int kRecords = 3;

struct MassesAbove {
  float masses[kRecords];

  WL_DEVICE static MassesAbove none() { return {}; }
  WL_DEVICE void merge(const MassesAbove& other) {
#pragma unroll
    for (int i = 0; i < kRecords; ++i) masses[i] += other.masses[i];
  }
};

struct TopPStorage {
  RowReduceStorage reduce;
  RaceStorage race;
  ArrivalStorage arrivals;
  TokenArrival records[kRecords];
};

template <class Config>
struct TopPDraw {
  using T = typename Config::In;
  using Weights = WeightsOf<Config>;

  TopPStorage& storage;
  RowReduce& reduce;
  const RowStream<T>& stream;
  float scale;
  float top_p;

  // A token or what is the matter.
  WL_DEVICE int draw(const Draws& draws) {
    const float all = negative_infinity();
    RowScan<Weights> scan(scale);
    stream.template visit<false>([&](const Packed(&groups)[kBatch], int batch) {
      scan.template enter<T, false>(groups, batch, draws, all);
    });
    stream.template start<true>();
    const RaceState state = race_of_row(scan, reduce, storage.race);
    if (!can_draw<Weights>(state)) return kBadRow;
    const Weights weights(state.reference, scale);
    ArrivalSearch<T, Weights> arrivals(storage.arrivals, reduce, weights, draws, all, all);
    const bool finite = state.mass <= kLargestFinite;  // of probabilities it may be too large a sum
    if (!finite || !arrivals.collect(stream, scan, double(expected_arrivals()) / double(state.mass))) return kPending;
    const float error = 2 * mass_error(stream.tokens_of_thread());
    // To a record of which that can be said, or to the end of the records.
#pragma unroll 1
    for (float before = negative_infinity();;) {
      find_records(arrivals, before);
      if (!(top_p < 1)) return storage.records[0].token >= 0 ? storage.records[0].token : kPending;
      const MassesAbove above = reduce(masses_above(weights));
#pragma unroll
      for (int i = 0; i < kRecords; ++i) {
        if (storage.records[i].token < 0) return kPending;
        const float difference = above.masses[i] - top_p * state.mass;
        if (difference < -error * state.mass) return storage.records[i].token;
        if (difference <= error * state.mass) return kPending;
      }
      before = storage.records[kRecords - 1].value;
      stream.template start<true>();
      __syncthreads();  // all have read the records
    }
  }

 private:
  // Among as many the nucleus has twelve, or there would be too many: one block of the row may have them all.
  WL_DEVICE float expected_arrivals() const {
    const float wanted = reduce.parts > 8 ? 9.0f : 12.0f;
    return top_p < 1 ? fminf(wanted / top_p, 4 * wanted) : wanted;
  }

  WL_DEVICE void find_records(const ArrivalSearch<T, Weights>& arrivals, float before) {
    if (warp_id() == 0) {
#pragma unroll 1
      for (int i = 0; i < kRecords; ++i) {
        TokenArrival record = arrivals.first([=](float value) { return value > before; });
        if (record.token < 0) record.value = -negative_infinity();
        if (lane_id() == 0) storage.records[i] = record;
        before = record.value;
      }
    }
    __syncthreads();
  }

  // Of this thread's part.
  WL_DEVICE MassesAbove masses_above(const Weights& weights) const {
    MassesAbove sums = MassesAbove::none();
    float records[kRecords];
#pragma unroll
    for (int i = 0; i < kRecords; ++i) records[i] = storage.records[i].value;
    stream.template visit<true>([&](const Packed(&groups)[kBatch], int) {
#pragma unroll
      for (const Packed& packed : groups) {
        float values[kVecWidth<T>];
        values_of<T>(packed, values, Weights::kFromLogits);
#pragma unroll
        for (float value : values) {
          const float weight = weights.approximate(value);
#pragma unroll
          for (int i = 0; i < kRecords; ++i) sums.masses[i] += value > records[i] ? weight : 0.0f;
        }
      }
    });
    return sums;
  }
};

// Grid: rows x blocks of a row, those of one row next to each other (and one cluster if more than one).
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    draw_top_p_kernel(const __grid_constant__ DrawParams params) {
  using T = typename Config::In;
  extern __shared__ __align__(128) Packed ring[];
  __shared__ TopPStorage storage;
  const int64_t index = row_index();
  allow_next_kernel();
  const int64_t source_row = params.source_row(index);
  if (!params.has(source_row)) return params.finish(index, kBadRow);
  const float top_p = params.row_filters(index).top_p;
  if (top_p <= 0) return params.finish(index, kPending);
  ArrivalSearch<T, WeightsOf<Config>>::open(storage.arrivals);
  RowReduce reduce(storage.reduce, row_part(), row_parts());
  const RowStream<T> stream(params.load_row<T>(source_row), row_part(), row_parts(), ring);
  stream.template start<false>();
  TopPDraw<Config> draw{storage, reduce, stream, params.scale(index), top_p};
  params.finish(index, draw.draw(params.draws(index)));
  stream.drain();
}

}  // namespace warploom::sampling
