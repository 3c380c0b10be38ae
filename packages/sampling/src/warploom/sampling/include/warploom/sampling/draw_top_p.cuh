// A draw from the nucleus of a row, in one pass over it: a race among all tokens, and meanwhile a count of the tokens by their
// weights. The counts tell how much lies above the winner, within half a percent, and that mostly tells whether it is inside.
// The other rows, one in ten for top_p = 0.9, are left to `draw_filtered.cuh`.
#pragma once

#include "warploom/sampling/draw.cuh"
#include "warploom/sampling/mass.cuh"
#include "warploom/sampling/row_stream.cuh"
#include "warploom/sync.cuh"

namespace warploom::sampling {

struct Bounds {
  float least;
  float most;

  WL_DEVICE static Bounds none() { return {0.0f, 0.0f}; }
  WL_DEVICE void merge(const Bounds& other) { least += other.least, most += other.most; }
};

// Tokens of a block, by the logarithm of their weight relative to one of the larger ones.
template <class Weights>
struct WeightTable {
  static constexpr int kBins = 1536;
  static constexpr float kOctaves = 28.0f;
  static constexpr float kBelow = 9.0f;  // octaves of it below the reference; the outermost bins have all beyond
  // Weights of a bin are within this factor of each other: half a bin, and the errors of logarithms and of their places.
  static constexpr float kFactor = 1.0068f;

  uint32_t* counts;
  float reference;
  float scale;

  WL_DEVICE int bin(float value) const {
    const float octave = Weights::kFromLogits ? (value - reference) * scale : log2_approx_full(value) - scale;
    const float place = __saturatef(fmaf(octave, 1 / kOctaves, kBelow / kOctaves));
    return int(__float_as_uint(fmaf(place, float(kBins - 1), 0x1p23f)) & 0x7fffffu);
  }
  WL_DEVICE void add(float value) const { atomicAdd(&counts[bin(value)], 1u); }

  // In units of what the reference weighs.
  WL_DEVICE static float weight(int bin) { return exp2_approx(float(bin) * (kOctaves / (kBins - 1)) - kBelow); }

  // Bounds of the mass above a value, by this thread's bins: [least, most].
  WL_DEVICE Bounds above(float value) const {
    const int own = bin(value);
    if (own == 0 || counts[kBins - 1] > 0) return {0.0f, -negative_infinity()};
    Bounds sum{0.0f, threadIdx.x == 0 ? float(counts[own]) * weight(own) : 0.0f};
    for (int bin = own + 1 + int(threadIdx.x); bin < kBins; bin += int(blockDim.x)) {
      const float mass = float(counts[bin]) * weight(bin);
      sum.least += mass, sum.most += mass;
    }
    return {sum.least / kFactor, sum.most * kFactor};
  }
};

struct TopPStorage {
  RowReduceStorage reduce;
  RaceStorage race;
  Winner winner;
  alignas(16) uint32_t counts[WeightTable<LogitWeights>::kBins];
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
  WL_DEVICE int draw(const Draws& draws, Rejected* rejected) {
    const float all = negative_infinity(), reference = clear_table();
    const WeightTable<Weights> table{storage.counts, reference, Weights::kFromLogits ? scale : log2_approx_full(reference)};
    RowScan<Weights> scan(scale, Weights::kFromLogits ? reference : RowScan<Weights>::lowest());
    stream.visit_batches(true, [&](const Packed(&groups)[kBatch], int batch) {
      scan.template enter<T, false>(groups, batch, draws, all);
#pragma unroll
      for (const Packed& packed : groups) {
        float values[kVecWidth<T>];
        values_of<T>(packed, values, Weights::kFromLogits);
#pragma unroll
        for (float value : values) table.add(value);
      }
    });
    RaceState state = race_of_row(scan, reduce, storage.race);
    if (!can_draw<Weights>(state)) return kBadRow;
    settle_contenders<T>(state, scan, stream, reduce, all, draws);
    const Weights weights(state.reference, scale);
    if (warp_id() == 0) {
      const Winner found = winner_of_batch<T>(stream.row, state.batch, all, weights, draws);
      if (lane_id() == 0) storage.winner = found;
    }
    __syncthreads();
    const Winner found = storage.winner;
    if (!(top_p < 1)) return found.token;
    Bounds above = table.above(found.value);
    const float relative = weights.approximate(reference);  // to the row's reference, not to the block's
    above = reduce(Bounds{above.least * relative, above.most * relative});
    above.most -= weights.approximate(found.value);  // its own, which is not above
    const float error = 1e-4f + 2 * mass_error(stream.tokens_of_thread());
    if (above.most < (top_p - error) * state.mass) return found.token;
    const bool outside = above.least > (top_p + error) * state.mass;
    if (threadIdx.x == 0 && row_part() == 0) *rejected = {outside ? found.value : quiet_nan(), state.reference};
    return kPending;
  }

 private:
  // And gives a reference: the largest of what the block sees first. That is in the cache for the pass.
  WL_DEVICE float clear_table() {
    for (int i = threadIdx.x; i < WeightTable<Weights>::kBins; i += Config::kThreads) storage.counts[i] = 0;
    const float largest = warp_max(stream.first_largest());
    if (lane_id() == 0) storage.race.warps[warp_id()].best = largest;
    __syncthreads();
    const bool has_warp = lane_id() < Config::kThreads / kWarpSize;
    const float reference = warp_max(has_warp ? storage.race.warps[lane_id()].best : negative_infinity());
    __syncthreads();
    if constexpr (Config::kFromLogits) return fabsf(reference) <= kLargestFinite ? reference : RowScan<Weights>::lowest();
    return reference > 0 ? reference : 1.0f;
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
  if (top_p <= 0) {
    params.rejected[index] = {quiet_nan(), 0.0f};
    return params.finish(index, kPending);
  }
  RowReduce reduce(storage.reduce, row_part(), row_parts());
  const RowStream<T> stream(params.load_row<T>(source_row), row_part(), row_parts(), ring);
  TopPDraw<Config> draw{storage, reduce, stream, params.scale(index), top_p};
  params.finish(index, draw.draw(params.draws(index), params.rejected + index));
}

}  // namespace warploom::sampling
