// A draw from what top-k, top-p and min-p keep of a row that stays in shared memory.
//
// Their thresholds on the values are found first. Tokens outside the nucleus race too, but can not win: the first of the others
// is then looked for among the first arrivals.
#pragma once

#include "warploom/sampling/arrivals.cuh"
#include "warploom/sampling/row_filter.cuh"
#include "warploom/sync.cuh"

namespace warploom::sampling {

struct FilteredDrawStorage {
  RowFilterStorage filter;
  RaceStorage race;
  ArrivalStorage arrivals;
  int winner;
};

template <class Config>
struct FilteredDraw {
  using Filter = RowFilter<Config>;
  using T = typename Filter::T;
  using Weights = typename Filter::Weights;

  Filter& filter;
  FilteredDrawStorage& storage;

  // A token or what is the matter.
  WL_DEVICE int draw() {
    float reference = RowScan<Weights>::lowest();
    const bool filters = !filter.filters().keep_all(filter.share.row.vocab);
    if (filters) {
      const float maximum = filter.find_all();
      if (filter.bad) return kBadRow;
      reference = Weights(maximum, filter.scale).reference();
    }
    const Draws draws = filter.params.draws(filter.row);
    RowScan<Weights> scan(filter.scale, reference);
    filter.share.visit_batches(!filters, [&](const Packed(&groups)[kBatch], int batch) {
      scan.template enter<T, true>(groups, batch, draws, filter.minimum);
    });
    const RaceState state = race_of_row(scan, filter.reduce, storage.race);
    if (!filters && !can_draw<Weights>(state)) return kBadRow;
    const bool all = !(filter.nucleus > filter.minimum);
    if (all && state.contenders == 1) return first_of_all(state, draws);
    ArrivalSearch<T, Weights> arrivals(storage.arrivals, filter.reduce, Weights(state.reference, filter.scale), draws,
                                       filter.minimum, all ? filter.minimum : filter.nucleus);
    // Until the first of all, or for the time in which twelve are expected.
    double horizon = all ? time_of_key(state.best - kKeyError) : 12.0 / filter.mass;
#pragma unroll 1
    for (;;) {
      const bool fits = arrivals.collect(filter.share, scan, horizon);
      if (warp_id() == 0) {
        const int token = arrivals.first([](float) { return true; }).token;
        if (lane_id() == 0) storage.winner = token;
      }
      __syncthreads();
      if (fits && storage.winner >= 0) return storage.winner;
      horizon *= fits ? 4.0 : 0.6;  // by no common factor: between too early and too many some horizon will do
    }
  }

 private:
  // Where every token that races may win, and one batch has the first quad. For the row's first block; the others get any token.
  WL_DEVICE int first_of_all(const RaceState& state, const Draws& draws) {
    const Weights weights(state.reference, filter.scale);
    if (warp_id() != 0 || row_part() != 0) return 0;
    return winner_of_batch<T>(filter.share.row, state.batch, filter.minimum, weights, draws);
  }
};

// Grid: rows x blocks of a row, those of one row next to each other (and one cluster if more than one); fewer where few rows are
// pending, as then blocks that find nothing to do take the time.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    draw_filtered_kernel(const __grid_constant__ DrawParams params) {
  using Draw = FilteredDraw<Config>;
  using Filter = typename Draw::Filter;
  extern __shared__ __align__(128) Packed held[];
  __shared__ FilteredDrawStorage storage;
  ArrivalSearch<typename Draw::T, typename Draw::Weights>::open(storage.arrivals);
  storage.filter.threshold.table.open();
  RowReduce reduce(storage.filter.reduce, row_part(), row_parts());
  if (params.only_pending) wait_for_previous_kernel();
  uint32_t copies = 0;
#pragma unroll 1
  for (int row = int(row_index()); (row = params.next(row, row_count())) < params.rows; row += row_count()) {
    const int64_t source_row = params.source_row(row);
    if (!params.has(source_row)) {
      params.finish(row, kBadRow);
      continue;
    }
    typename Filter::Share share(params.load_row<typename Draw::T>(source_row), row_part(), row_parts(), held,
                                 storage.filter.landed, copies);
    copies += share.copied;
    __syncthreads();
    Filter filter(params, storage.filter, reduce, share, row);
    params.finish(row, Draw{filter, storage}.draw());
    __syncthreads();  // the next row takes the place of this one
  }
}

}  // namespace warploom::sampling
