// The part of a row that one block handles, where one pass is all and nothing is kept.
//
// Its threads ask for two batches ahead of the one that they work on, so that memory is never idle.
#pragma once

#include "warploom/cp_async.cuh"
#include "warploom/sampling/parts.cuh"
#include "warploom/sampling/race.cuh"

namespace warploom::sampling {

constexpr int kStreamStages = 3;  // a thread's batches on their way or in use, in shared memory
constexpr int kStreamBytes = kStreamStages * kBatch * 16;  // of a thread

// The blocks of a row take `blockDim.x` batches in turn.
template <class T>
struct RowStream {
  SourceRow<T> row;
  int first;  // batch of this thread
  int step;   // to its next one
  int vectors;   // groups that are copied; the others are read token by token
  Packed* ring;  // of this thread, blockDim.x apart

  // `ring` has kStreamBytes for each thread of the block.
  WL_DEVICE RowStream(const SourceRow<T>& row, int part, int parts, Packed* ring)
      : row(row),
        first(part * int(blockDim.x) + int(threadIdx.x)),
        step(parts * int(blockDim.x)),
        vectors(row.aligned ? row.whole_groups() : 0),
        ring(ring + threadIdx.x) {
#pragma unroll
    for (int stage = 0; stage < kStreamStages - 1; ++stage) request(stage, first + stage * step);
  }

  // At most.
  WL_DEVICE int tokens_of_thread() const { return ceil_div(row.groups, kBatch * step) * kBatch * kVecWidth<T>; }

  // The largest token of this thread's first batch, or of some of it.
  WL_DEVICE float first_largest() const {
    Packed groups[kBatch];
    cp_async_wait<kStreamStages - 2>();
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int group = batch_of<T>(first) + i * kBatchStep<T>;
      groups[i] = group < vectors ? ring[i * blockDim.x] : nothing<T>();
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

  // Calls visitor(groups, batch) for this thread's batches; groups beyond the row are `nothing`. Once.
  template <class Visitor>
  WL_DEVICE void visit_batches(bool, Visitor&& visitor) const {
    int slot = 0;
#pragma unroll 1
    for (int unit = first;; unit += step) {
      const int batch = batch_of<T>(unit);
      if (batch >= row.groups) break;
      cp_async_wait<kStreamStages - 2>();
      Packed groups[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int group = batch + i * kBatchStep<T>;
        groups[i] = ring[(slot * kBatch + i) * blockDim.x];
        if (group >= vectors) groups[i] = group < row.groups ? row.load_by_token(group) : nothing<T>();
      }
      // Into the slot of the batch before this one, which has been used.
      request(slot == 0 ? kStreamStages - 1 : slot - 1, unit + (kStreamStages - 1) * step);
      slot = slot == kStreamStages - 1 ? 0 : slot + 1;
      visitor(groups, batch);
    }
  }

 private:
  WL_DEVICE void request(int slot, int unit) const {
    const int batch = batch_of<T>(unit);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int group = batch + i * kBatchStep<T>;
      if (group < vectors) {
        cp_async_16(&ring[(slot * kBatch + i) * blockDim.x], reinterpret_cast<const Packed*>(row.start) + group);
      }
    }
    cp_async_commit();
  }
};

}  // namespace warploom::sampling
