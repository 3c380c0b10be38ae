// What every rotary position embedding does to two components.
#pragma once

#include "warploom/common.cuh"

namespace warploom::attention {

// Two components that turn together.
struct RopePair {
  float first;
  float second;

  // By an angle with this cosine and sine.
  WL_DEVICE RopePair turned(float2 turn) const {
    return {first * turn.x - second * turn.y, second * turn.x + first * turn.y};
  }
};

}  // namespace warploom::attention
