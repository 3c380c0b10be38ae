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

// tanh without branches: the relative error is 2e-6. Small numbers by the series, others by exponentials.
WL_DEVICE float tanh_approx(float x) {
  const float square = x * x;
  const float near = x * fmaf(square, fmaf(square, fmaf(square, -17.0f / 315.0f, 2.0f / 15.0f), -1.0f / 3.0f), 1.0f);
  const float far = 1.0f - __fdividef(2.0f, 1.0f + exp2_approx(2.8853900818f * x));
  return fabsf(x) < 0.25f ? near : far;
}

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
