// One row of logits as aligned 16-byte vectors, and the part of it that one block of a cluster handles.
#pragma once

#include "warploom/cluster.cuh"
#include "warploom/convert.cuh"
#include "warploom/vec.cuh"

namespace warploom::sampling {

// A row may start anywhere: its vectors begin at the 16-byte boundary at or before it, and `lead` elements of the first
// one belong to whatever precedes it. Elements outside the row are never touched and read as -inf.
template <class T>
struct Row {
  static constexpr int kWidth = kVecWidth<T>;
  using Vector = Vec<T, kWidth>;

  const T* base;
  int lead;
  int vocab;

  WL_DEVICE Row(const T* start, int vocab) : vocab(vocab) {
    lead = int(reinterpret_cast<uint64_t>(start) % 16) / int(sizeof(T));
    base = start - lead;
  }

  WL_DEVICE int vectors() const { return (lead + vocab + kWidth - 1) / kWidth; }
  // Element of the row that vector `index` starts with; negative in the first vector of a row that is not aligned.
  WL_DEVICE int first_element(int index) const { return index * kWidth - lead; }
  WL_DEVICE bool is_whole(int index) const {
    const int first = first_element(index);
    return first >= 0 && first + kWidth <= vocab;
  }

  // kReread: the vector is read again soon and should stay in L2.
  template <bool kReread>
  WL_DEVICE Vector load(int index) const {
    const T* pointer = base + index * kWidth;
    if (is_whole(index)) return kReread ? Vector::load(pointer) : Vector::load_streaming(pointer);
    return load_edge(index, pointer);
  }

  WL_DEVICE static Vector nothing() {
    Vector vector;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) vector[i] = from_float<T>(negative_infinity());
    return vector;
  }

 private:
  WL_DEVICE Vector load_edge(int index, const T* pointer) const {
    Vector vector = nothing();
    const int first = first_element(index);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (first + i >= 0 && first + i < vocab) vector[i] = pointer[i];
    }
    return vector;
  }
};

// Vectors [begin, end) of a row: the share of one of the blocks that divide the row among them.
struct Slice {
  int begin;
  int end;

  WL_DEVICE Slice(int vectors, int part, int parts) {
    const int share = ceil_div(vectors, parts);
    begin = min(part * share, vectors);
    end = min(begin + share, vectors);
  }
};

// The blocks that share a row: those of a cluster, which has one block where the hardware or the launch has none.
WL_DEVICE int row_parts() {
#if __CUDA_ARCH__ >= 900
  return int(cluster_size());
#else
  return 1;
#endif
}
WL_DEVICE int row_part() {
#if __CUDA_ARCH__ >= 900
  return int(cluster_rank());
#else
  return 0;
#endif
}

}  // namespace warploom::sampling
