// The part of a row that one block handles, where one pass is all and nothing is kept.
#pragma once

#include "warploom/sampling/parts.cuh"
#include "warploom/sampling/race.cuh"

namespace warploom::sampling {

// The blocks of a row take `blockDim.x` batches in turn.
template <class T>
struct RowStream {
  SourceRow<T> row;
  int first;  // batch of this thread
  int step;   // to its next one

  WL_DEVICE RowStream(const SourceRow<T>& row, int part, int parts)
      : row(row), first(part * int(blockDim.x) + int(threadIdx.x)), step(parts * int(blockDim.x)) {}

  // At most.
  WL_DEVICE int tokens_of_thread() const { return ceil_div(row.groups, kBatch * step) * kBatch * kVecWidth<T>; }

  // The largest token of this thread's first batch, or of some of it.
  WL_DEVICE float first_largest() const {
    Packed groups[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int group = batch_of<T>(first) + i * kBatchStep<T>;
      groups[i] = row.aligned && group < row.whole_groups() ? row.load(group) : nothing<T>();
    }
    const int token = batch_of<T>(first) * kVecWidth<T>;
    const float edge = token < row.vocab ? to_float(row.load_token(token)) : negative_infinity();
    return fmaxf(max_element<T>(groups), edge);
  }

  // Calls visitor(batch) for the batches of a thread.
  template <class Visitor>
  WL_DEVICE void for_batches(int thread, Visitor&& visitor) const {
#pragma unroll 1
    for (int unit = first - int(threadIdx.x) + thread; batch_of<T>(unit) < row.groups; unit += step) {
      visitor(batch_of<T>(unit));
    }
  }

  // Calls visitor(groups, batch) for this thread's batches; groups beyond the row are `nothing`.
  template <class Visitor>
  WL_DEVICE void visit_batches(bool, Visitor&& visitor) const {
    const int vectors = row.aligned ? row.whole_groups() : 0;
#pragma unroll 1
    for (int unit = first;; unit += step) {
      const int batch = batch_of<T>(unit);
      if (batch >= row.groups) break;
      Packed groups[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int group = batch + i * kBatchStep<T>;
        if (group < vectors) {
          groups[i] = __ldcs(reinterpret_cast<const Packed*>(row.start) + group);
        } else {
          groups[i] = group < row.groups ? row.load_by_token(group) : nothing<T>();
        }
      }
      visitor(groups, batch);
    }
  }
};

}  // namespace warploom::sampling
