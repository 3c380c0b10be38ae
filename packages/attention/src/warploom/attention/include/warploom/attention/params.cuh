// What the attention kernels take.
#pragma once

#include "warploom/attention/schedule.cuh"

namespace warploom::attention {

constexpr int kMaxVariantArguments = 8;  // of each kind

// Strides are in elements; the components of a head are contiguous.
struct AttentionParams {
  const void* q;    // [q_rows, qo_heads, dim]
  const void* k;    // [pages, page_size, kv_heads, dim], or [rows, kv_heads, dim]
  const void* v;
  void* out;        // [q_rows, qo_heads, dim_vo]
  float* lse;       // [q_rows, qo_heads], or null
  const int* qo_indptr;       // [batch + 1]
  const int* kv_lens;         // [batch]
  const int* kv_starts;       // [batch], the first entry of `pages`, or the first row
  const int* pages;           // or null
  const WorkStart* starts;    // [blocks]
  float* partial_out;         // [blocks, 2, tile rows, dim_vo], of items that a block shares with the one before and the next
  float* partial_lse;         // [blocks, 2, tile rows], base 2
  int* arrivals;              // [blocks] of an item's shares, by its first block; 0 between launches
  const float* logits_scales; // [qo_heads] or [1], or null
  const float* value_scales;
  const float* sinks;         // [qo_heads], or null
  const int64_t* mask_indptr; // [batch + 1]
  const void* tensors[kMaxVariantArguments];
  int64_t integers[kMaxVariantArguments];
  int64_t q_stride[2];
  int64_t k_stride[3];  // page, row, head
  int64_t v_stride[3];
  int64_t out_stride[2];
  int64_t lse_stride[2];
  Divisor group_size;
  Divisor page_size;  // 1 without pages
  float numbers[kMaxVariantArguments];
  float logits_scale;
  float value_scale;
  float lse_unit;  // what a unit of log2 is in the caller's base
  int batch;
  int q_rows;
  int num_kv_heads;
  int lanes;  // of the schedule
  TileSizes tile;
  int causal;
  int window_left;
  int logits_scales_step;  // 0: one for all heads
  int value_scales_step;
};

}  // namespace warploom::attention
