// Rows of ragged tensors.
#pragma once

#include "warploom/common.cuh"

namespace warploom::attention {

// The request that owns a row: the last one that starts at or before it (empty requests are stepped over); -1 for padding,
// that is rows from indptr[batch] on. `indptr` holds batch + 1 offsets that do not decrease.
template <class Index>
WL_DEVICE int request_of_row(const Index* indptr, int batch, int64_t row) {
  if (row < indptr[0] || row >= indptr[batch]) return -1;
  int low = 0;        // indptr[low] <= row
  int high = batch;   // indptr[high] > row
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    if (indptr[middle] <= row) low = middle;
    else high = middle;
  }
  return low;
}

}  // namespace warploom::attention
