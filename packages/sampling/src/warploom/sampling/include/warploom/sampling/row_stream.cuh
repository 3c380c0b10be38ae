// The part of a row that one block handles, where passes read it from device memory and nothing is kept.
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
  int first;    // batch of this thread, as number of the row
  int step;     // to its next one
  int count;    // of batches of the row
  int batches;  // of this thread
  int vectors;  // groups that are copied; the others are read token by token
  Packed* ring; // of this thread, blockDim.x apart

  // `ring` has kStreamBytes for each thread of the block.
  WL_DEVICE RowStream(const SourceRow<T>& row, int part, int parts, Packed* ring)
      : row(row),
        first(part * int(blockDim.x) + int(threadIdx.x)),
        step(parts * int(blockDim.x)),
        count(batch_count<T>(row.groups)),
        batches(batches_of(threadIdx.x)),
        vectors(row.aligned ? row.whole_groups() : 0),
        ring(ring + threadIdx.x) {}

  // At most.
  WL_DEVICE int tokens_of_thread() const { return ceil_div(count, step) * kBatch * kVecWidth<T>; }

  // A thread's batches.
  WL_DEVICE int batches_of(int thread) const {
    return max(ceil_div(count - (first - int(threadIdx.x) + thread), step), 0);
  }
  WL_DEVICE int batch_of_thread(int thread, int number) const {
    return batch_of<T>(first - int(threadIdx.x) + thread + number * step);
  }
  template <class Visitor>
  WL_DEVICE void for_batches(int thread, Visitor&& visitor) const {
    const int batches = batches_of(thread);
#pragma unroll 1
    for (int number = 0; number < batches; ++number) visitor(batch_of_thread(thread, number));
  }

  // A group, nothing beyond the row, and token `i` of one.
  WL_DEVICE Packed load(int group) const { return group < row.groups ? row.load(group) : nothing<T>(); }
  WL_DEVICE T token(int group, int i) const { return row.load_token(group * SourceRow<T>::kWidth + i); }

  // Asks for the first batches of a pass, of which there is one at a time. A second pass goes backwards: what was read last is
  // still in L2.
  template <bool kBackwards>
  WL_DEVICE void start() const {
    int unit = kBackwards ? first + (batches - 1) * step : first;
#pragma unroll
    for (int stage = 0; stage < kStreamStages - 1; ++stage) {
      request(stage, unit, stage < batches);
      unit += kBackwards ? -step : step;
    }
  }

  // Before the kernel ends, if a pass that was asked for has not taken place.
  WL_DEVICE void drain() const { cp_async_wait<0>(); }

  // Calls visitor(groups, batch) for this thread's batches; groups beyond the row are `nothing`.
  template <bool kBackwards, class Visitor>
  WL_DEVICE void visit(Visitor&& visitor) const {
    const int to_next = kBackwards ? -step : step;
    int unit = kBackwards ? first + (batches - 1) * step : first, slot = 0;
#pragma unroll 1
    for (int left = batches; left > 0; --left, unit += to_next) {
      const int batch = batch_of<T>(unit);
      cp_async_wait<kStreamStages - 2>();
      Packed groups[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int group = batch + i * kBatchStep<T>;
        groups[i] = ring[(slot * kBatch + i) * blockDim.x];
        if (group >= vectors) groups[i] = group < row.groups ? row.load_by_token(group) : nothing<T>();
      }
      // Into the slot of the batch before this one, which has been used.
      const int free = slot == 0 ? kStreamStages - 1 : slot - 1;
      request(free, unit + (kStreamStages - 1) * to_next, left > kStreamStages - 1);
      slot = slot == kStreamStages - 1 ? 0 : slot + 1;
      visitor(groups, batch);
    }
  }

 private:
  WL_DEVICE void request(int slot, int unit, bool exists) const {
    const int batch = batch_of<T>(unit);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int group = batch + i * kBatchStep<T>;
      if (exists && group < vectors) {
        cp_async_16(&ring[(slot * kBatch + i) * blockDim.x], reinterpret_cast<const Packed*>(row.start) + group);
      }
    }
    cp_async_commit();
  }
};

}  // namespace warploom::sampling
