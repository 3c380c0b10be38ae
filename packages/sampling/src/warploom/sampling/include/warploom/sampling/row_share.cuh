// The part of a row that one block handles, kept in its shared memory from the first visit on.
//
// The blocks of a row take its 4 KB tiles in turn, so that each sees the whole vocabulary: neighbouring tokens are often
// alike (masked ranges, padding). Aligned rows are copied by the copy engine, in stages that the first visit waits for one
// by one; other rows by threads, token by token. Without kResident a row is too long to keep, and each visit reads it again,
// from L2.
#pragma once

#include "warploom/sampling/parts.cuh"
#include "warploom/sampling/race.cuh"
#include "warploom/tma.cuh"

namespace warploom::sampling {

constexpr int kTileGroups = 256;
constexpr int kShareStages = 4;

template <class T, bool kResident>
struct RowShare {
  using Element = T;
  static constexpr bool kIsResident = kResident;
  static constexpr int kTileUnits = kTileGroups / kBatch;

  SourceRow<T> row;
  int part;
  int parts;
  int count;        // groups of this block
  int log2_stage;   // tiles that arrive together
  Packed* held;     // [count] in shared memory, unless the row is too long
  uint64_t* landed; // [kShareStages] mbarriers
  bool copied;      // by the copy engine
  uint32_t turn;    // rows that the block has had by the copy engine before this one

  // `landed` and what threads have copied are published by the barrier that the caller puts before the first visit.
  WL_DEVICE RowShare(const SourceRow<T>& row, int part, int parts, Packed* held, uint64_t* landed, uint32_t turn = 0)
      : row(row), part(part), parts(parts), held(held), landed(landed), copied(false), turn(turn) {
    // `parts` is a power of two; a division takes longer than all of this.
    const int tiles = ceil_div(row.groups, kTileGroups);
    const int log2_parts = __ffs(parts) - 1;
    const int mine = (max(tiles - part, 0) + parts - 1) >> log2_parts;
    const bool has_last = mine > 0 && ((tiles - 1) & (parts - 1)) == part;
    count = mine * kTileGroups - (has_last ? tiles * kTileGroups - row.groups : 0);
    log2_stage = 0;
    while (kShareStages << log2_stage < mine) ++log2_stage;
#if __CUDA_ARCH__ >= 900
    copied = kResident && row.aligned;
    if (copied) start_copy();
#endif
    if constexpr (kResident) {
      // What is not copied, up to whole tiles: groups beyond the row too.
      for (int local = (copied ? count : 0) + int(threadIdx.x); local < mine * kTileGroups; local += int(blockDim.x)) {
        held[local] = local < count ? row.load(group_of(local)) : nothing<T>();
      }
    }
  }

  // At most.
  WL_DEVICE int tokens_of_thread() const {
    return ceil_div(count, kBatch * int(blockDim.x)) * kBatch * kVecWidth<T>;
  }

  // Group of the row that is number `local` of this block.
  WL_DEVICE int group_of(int local) const {
    return (local / kTileGroups * parts + part) * kTileGroups + local % kTileGroups;
  }

  WL_DEVICE int local_of(int group) const {
    return (group / kTileGroups >> (__ffs(parts) - 1)) * kTileGroups + group % kTileGroups;
  }

  // Token `i` of a group of this block's part.
  WL_DEVICE T token(int group, int i) const {
    if constexpr (!kResident) return row.load_token(group * SourceRow<T>::kWidth + i);
    return reinterpret_cast<const T*>(held + local_of(group))[i];
  }

  // Calls visitor(groups, batch) for this thread's batches; groups beyond the row are `nothing`. The first visit of all must
  // say so.
  template <class Visitor>
  WL_DEVICE void visit_batches(bool first, Visitor&& visitor) {
    visit_groups<kBatch>(first, visitor);
  }

  // Calls visitor(groups, group) for kGroups groups at a time, kBatchStep apart from the first, for less code.
  template <int kGroups, class Visitor>
  WL_DEVICE void visit_groups(bool first, Visitor&& visitor) {
#pragma unroll 1
    for (int unit = threadIdx.x;; unit += int(blockDim.x)) {
      const int tile = int(unit / kTileUnits);
      const int local = tile * kTileGroups + batch_of<T>(unit % kTileUnits);
      if (tile * kTileGroups >= count) break;
#if __CUDA_ARCH__ >= 900
      if (kResident && first && copied) mbarrier_wait(&landed[tile >> log2_stage], turn & 1);
#endif
#pragma unroll(kGroups == 1 ? 2 : 1)
      for (int start = 0; start < kBatch; start += kGroups) {
        Packed groups[kGroups];
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          const int at = local + (start + i) * kBatchStep<T>;
          groups[i] = kResident || at < count ? fetch(at) : nothing<T>();
        }
        visitor(groups, group_of(local + start * kBatchStep<T>));
      }
    }
  }

  // A thread's batches, as `visit_batches` goes.
  WL_DEVICE int batches_of(int thread) const {
    const int units = ceil_div(count, kTileGroups) * kTileUnits;
    return max(ceil_div(units - thread, int(blockDim.x)), 0);
  }
  WL_DEVICE int batch_of_thread(int thread, int number) const {
    const int unit = thread + number * int(blockDim.x);
    return group_of(unit / kTileUnits * kTileGroups + batch_of<T>(unit % kTileUnits));
  }

  // A group of this block, once it has been visited; beyond the row it is `nothing`.
  WL_DEVICE Packed load(int group) const {
    if (group >= row.groups) return nothing<T>();
    if constexpr (!kResident) return row.load(group);
    return held[local_of(group)];
  }

 private:
  WL_DEVICE Packed fetch(int local) const {
    if constexpr (!kResident) return row.load(group_of(local));
    return held[local];
  }

#if __CUDA_ARCH__ >= 900
  WL_DEVICE void start_copy() {
    // The copy engine takes whole groups; the rest of the row, a few tokens, is up to a thread.
    const int partial = row.groups - row.whole_groups();
    const bool has_partial = partial && count > 0 && group_of(count - 1) == row.groups - 1;
    if (has_partial && threadIdx.x == blockDim.x - 1) held[count - 1] = row.load(row.groups - 1);
    if (warp_id() != 0) return;
    const int whole = count - (has_partial ? 1 : 0);
    const int stage_groups = kTileGroups << log2_stage;
    if (lane_id() < kShareStages) {
      const int begin = min(lane_id() * stage_groups, whole), end = min(begin + stage_groups, whole);
      if (turn == 0) mbarrier_init(&landed[lane_id()], 1);
      fence_barrier_init();
      mbarrier_expect_bytes(&landed[lane_id()], (end - begin) * 16);
    }
    __syncwarp();
    for (int tile = lane_id(); tile * kTileGroups < whole; tile += kWarpSize) {
      const int local = tile * kTileGroups;
      const T* from = row.start + int64_t(group_of(local)) * SourceRow<T>::kWidth;
      bulk_load(held + local, from, min(kTileGroups, whole - local) * 16, &landed[tile >> log2_stage]);
    }
  }
#endif
};

}  // namespace warploom::sampling
