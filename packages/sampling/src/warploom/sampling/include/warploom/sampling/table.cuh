// Tables that each block of a row fills, added up: every block gets the sums. And lists of numbers, put together.
//
// Blocks divide the words of a table. Each gets its words of all tables, adds them up, and sends the sums to all: two hops.
#pragma once

#include "warploom/sampling/row_reduce.cuh"

namespace warploom::sampling {

struct alignas(16) TableStorage {
  static constexpr int kWords = 1024;
  uint32_t words[kWords];    // the table, or the block's own list
  uint32_t arrived[kWords];  // words of all tables, or the lists of all blocks: a region for each
  uint64_t barriers[3];      // mbarriers: words of tables, sums, lists
  uint32_t phases;           // of the barriers, as bits
  int listed[RowReduceStorage::kMaxParts];  // entries of the regions

  // By all threads at the start of the kernel; RowReduce, made after it, has the fence.
  WL_DEVICE void open() {
    if (threadIdx.x != 0) return;
    phases = 0;
#if __CUDA_ARCH__ >= 900
    for (uint64_t& barrier : barriers) mbarrier_init(&barrier, 1);
#endif
  }

  // First half of adding up: sends. Numbers of two words have the low ones in the first half of the table, the high ones in the
  // second. All threads of all blocks, after a block barrier.
  WL_DEVICE void start(int halves, int part, int parts) {
#if __CUDA_ARCH__ >= 900
    if (parts == 1) return;
    const int log2_slice = slice_bits(halves, parts);
#pragma unroll 1
    for (int piece = threadIdx.x; piece < kPieces; piece += int(blockDim.x)) {
      const int half = halves == 2 ? piece / (kPieces / 2) : 0, place = piece - half * (kPieces / 2);
      const int owner = place >> log2_slice, slot = (half << log2_slice) + (place & ((1 << log2_slice) - 1));
      send(piece_of(arrived, part * (kPieces / parts) + slot), *piece_of(words, piece), owner, 0);
    }
#endif
  }

  // Second half: `words` has the sums, for all threads.
  WL_DEVICE void finish(int halves, int part, int parts) {
#if __CUDA_ARCH__ >= 900
    if (parts == 1) return;
    const int log2_slice = slice_bits(halves, parts), pieces = kPieces / parts;  // of this block
    wait(0, kWords * int(sizeof(uint32_t)));
#pragma unroll 1
    for (int start = 0; start < kPieces; start += int(blockDim.x)) {
      // Each piece of this block's sums, for each block.
      const int job = start + int(threadIdx.x), slot = job & (pieces - 1), peer = job >> (__ffs(pieces) - 1);
      const int half = slot >> log2_slice, place = slot & ((1 << log2_slice) - 1);
      const uint4 sum = sum_of(half, place, parts, log2_slice);
      __syncthreads();  // nobody needs what has arrived
      const int piece = half * (kPieces / 2) + (part << log2_slice) + place;
      if (job < kPieces) send(piece_of(words, piece), sum, peer, 1);
    }
    wait(1, kWords * int(sizeof(uint32_t)));
#endif
  }

  // First half of putting lists together: sends the first `count` words. All threads of all blocks, after a block barrier.
  WL_DEVICE void send_list(int count, int part, int parts) {
    const int region = kWords >> (__ffs(parts) - 1), pieces = ceil_div(min(count, region), 4);
    for (int i = count + int(threadIdx.x); i < pieces * 4; i += int(blockDim.x)) words[i] = 0xffffffffu;
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < pieces * parts; i += int(blockDim.x)) {
      const int peer = i & (parts - 1), piece = i >> (__ffs(parts) - 1);
      send(piece_of(arrived, part * region / 4 + piece), *piece_of(words, piece), peer, 2);
    }
  }

  // Second half, given the counts of all blocks by lanes. False if a list was too long.
  WL_DEVICE bool receive_list(int count, int parts) {
    const int region = kWords >> (__ffs(parts) - 1), held = ceil_div(min(count, region), 4) * 4;
    if (int(threadIdx.x) < parts) listed[threadIdx.x] = held;
#if __CUDA_ARCH__ >= 900
    if (parts > 1) wait(2, __reduce_add_sync(kFullMask, held) * int(sizeof(uint32_t)));
#endif
    __syncthreads();
    return __all_sync(kFullMask, count <= region);
  }

  // Calls visitor(word) for the words of all lists, and some of 0xffffffff.
  template <class Visitor>
  WL_DEVICE void visit_list(int parts, Visitor&& visitor) const {
    const int log2_region = 31 - __clz(kWords / parts);
#pragma unroll 1
    for (int i = threadIdx.x; i < kWords; i += int(blockDim.x)) {
      if ((i & ((1 << log2_region) - 1)) < listed[i >> log2_region]) visitor(arrived[i]);
    }
  }

 private:
  static constexpr int kPieces = kWords / 4;  // of 16 bytes

  template <class Word>
  WL_DEVICE static auto piece_of(Word* table, int piece) {
    return reinterpret_cast<conditional_t<is_same_v<Word, uint32_t>, uint4, const uint4>*>(table) + piece;
  }

  // Pieces that a block adds up, of each half of the table if it has some, as a power of two.
  WL_DEVICE static int slice_bits(int halves, int parts) { return 31 - __clz(kPieces / halves / parts); }

  WL_DEVICE void send(uint4* slot, const uint4& piece, int peer, int barrier) {
#if __CUDA_ARCH__ >= 900
    if (cluster_size() > 1) return send_async(map_to_rank(slot, peer), piece, map_to_rank(&barriers[barrier], peer));
#endif
    *slot = piece;
  }

#if __CUDA_ARCH__ >= 900
  WL_DEVICE void wait(int barrier, int bytes) {
    const uint32_t phase = phases >> barrier & 1;
    if (threadIdx.x == 0) mbarrier_expect_bytes(&barriers[barrier], bytes);
    mbarrier_wait(&barriers[barrier], phase);
    __syncthreads();
    if (threadIdx.x == 0) phases ^= 1u << barrier;
  }

  // Of the slices that have arrived: the words of a piece, with what the low ones of the same numbers carry.
  WL_DEVICE uint4 sum_of(int half, int place, int parts, int log2_slice) const {
    uint64_t sums[4] = {};
#pragma unroll 1
    for (int of = 0; of <= half; ++of) {
#pragma unroll
      for (uint64_t& sum : sums) sum >>= 32;
#pragma unroll 4
      for (int from = 0; from < parts; ++from) {
        add(sums, *piece_of(arrived, from * (kPieces / parts) + (of << log2_slice) + place));
      }
    }
    return {uint32_t(sums[0]), uint32_t(sums[1]), uint32_t(sums[2]), uint32_t(sums[3])};
  }

  WL_DEVICE static void add(uint64_t (&sums)[4], const uint4& piece) {
    sums[0] += piece.x, sums[1] += piece.y, sums[2] += piece.z, sums[3] += piece.w;
  }
#endif
};

}  // namespace warploom::sampling
