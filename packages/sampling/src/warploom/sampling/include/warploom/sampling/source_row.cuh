// One row of logits or probabilities, in groups of consecutive tokens: 16 bytes each, whatever the row's alignment.
//
// Token t is in group t / kWidth, so a group's tokens share blocks of the random-number generator. Rows that start at a
// multiple of 16 bytes load a group at once; others, and the last group of a row that ends inside it, token by token.
#pragma once

#include "warploom/sampling/packed.cuh"

namespace warploom::sampling {

// A group token by token. Not inline: long, and not where rows are fast.
template <class T>
__device__ __noinline__ Packed gather_group(const T* start, int64_t stride, int vocab, int group) {
  constexpr int kWidth = kVecWidth<T>;
  Vec<T, kWidth> tokens = Vec<T, kWidth>::from_raw(nothing<T>());
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const int token = group * kWidth + i;
    if (token < vocab) tokens[i] = start[token * stride];
  }
  return tokens.raw();
}

template <class T>
struct SourceRow {
  static constexpr int kWidth = kVecWidth<T>;

  const T* start;
  int64_t stride;  // between tokens, in elements
  int vocab;
  int groups;
  bool aligned;  // whole groups are aligned 16-byte vectors

  WL_DEVICE SourceRow(const T* start, int64_t stride, int vocab)
      : start(start),
        stride(stride),
        vocab(vocab),
        groups(ceil_div(vocab, kWidth)),
        aligned(stride == 1 && reinterpret_cast<uint64_t>(start) % 16 == 0) {}

  WL_DEVICE int whole_groups() const { return vocab / kWidth; }

  // Tokens beyond the row read as -inf.
  WL_DEVICE Packed load(int group) const {
    if (aligned && group < whole_groups()) return Vec<T, kWidth>::load(start + int64_t(group) * kWidth).raw();
    return load_by_token(group);
  }

  WL_DEVICE T load_token(int token) const { return start[token * stride]; }

  WL_DEVICE Packed load_by_token(int group) const { return gather_group<T>(start, stride, vocab, group); }
};

}  // namespace warploom::sampling
