// Where a logit is, for masks and for the expressions of variants, which are compiled in as `Config::Variant`:
//
//   struct Variant {
//     static constexpr bool kHasLogits, kHasMask;
//     static float logits(const AttentionParams& params, const LogitPosition& at, float logits);
//     static bool mask(const AttentionParams& params, const LogitPosition& at);
//   };
#pragma once

#include "warploom/attention/params.cuh"

namespace warploom::attention {

struct LogitPosition {
  int batch_idx;
  int qo_idx;
  int kv_idx;
  int qo_pos;
  int qo_head_idx;
  int kv_head_idx;
  int qo_len;
  int kv_len;
};

struct NoVariant {
  static constexpr bool kHasLogits = false;
  static constexpr bool kHasMask = false;
};

}  // namespace warploom::attention
