// A draw from the whole distribution: one pass over the row, and one exchange between the blocks that share it.
#pragma once

#include "warploom/sampling/draw.cuh"
#include "warploom/sampling/row_stream.cuh"

namespace warploom::sampling {

// Grid: rows x blocks of a row, those of one row next to each other (and one cluster if more than one).
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    draw_plain_kernel(const __grid_constant__ DrawParams params) {
  using T = typename Config::In;
  using Weights = WeightsOf<Config>;
  extern __shared__ __align__(128) Packed ring[];
  __shared__ RowReduceStorage reduce_storage;
  __shared__ RaceStorage race_storage;
  const int64_t index = row_index();
  const int64_t source_row = params.source_row(index);
  if (!params.has(source_row)) return params.finish(index, kBadRow);
  RowReduce reduce(reduce_storage, row_part(), row_parts());
  RowStream<T> stream(params.load_row<T>(source_row), row_part(), row_parts(), ring);
  const Draws draws = params.draws(index);
  const float all = negative_infinity();

  stream.template start<false>();
  RowScan<Weights> scan(params.scale(index));
  stream.template visit<false>([&](const Packed(&groups)[kBatch], int batch) {
    scan.template enter<T, false>(groups, batch, draws, all);
  });
  RaceState state = race_of_row(scan, reduce, race_storage);

  if (!can_draw<Weights>(state)) return params.finish(index, kBadRow);
  settle_contenders<T>(state, scan, stream, reduce, all, draws);
  if (row_part() != 0 || warp_id() != 0) return;
  params.finish(index, winner_of_batch<T>(stream.row, state.batch, all, Weights(state.reference, scan.scale), draws));
}

}  // namespace warploom::sampling
