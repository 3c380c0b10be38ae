// One row of logits as the softmax sees it: 16-byte vectors, a few elements before and after them, and the part of one block.
#pragma once

#include "warploom/sampling/packed.cuh"
#include "warploom/sampling/parts.cuh"

namespace warploom::sampling {

// A row may start anywhere: `head` elements lie before its first 16-byte boundary and `tail` after its last.
template <class T>
struct Row {
  static constexpr int kWidth = kVecWidth<T>;
  using Vector = Vec<T, kWidth>;

  const T* start;
  int vocab;
  int head;
  int vectors;
  int tail;

  WL_DEVICE Row(const T* start, int vocab) : start(start), vocab(vocab) {
    const int past_boundary = int(reinterpret_cast<uint64_t>(start) % 16) / int(sizeof(T));
    head = min((kWidth - past_boundary) % kWidth, vocab);
    vectors = (vocab - head) / kWidth;
    tail = (vocab - head) % kWidth;
  }

  // kReread: the vector is read again soon and should stay in L2.
  template <bool kReread>
  WL_DEVICE Packed load(int index) const {
    const T* pointer = start + head + index * kWidth;
    return (kReread ? Vector::load(pointer) : Vector::load_streaming(pointer)).raw();
  }

  // The element outside the vectors that a thread of the row's first block handles, or -1.
  WL_DEVICE int edge_element(int thread) const {
    if (thread < head) return thread;
    return thread < head + tail ? vocab - tail + thread - head : -1;
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

}  // namespace warploom::sampling
