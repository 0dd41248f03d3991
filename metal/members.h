// Which picks of several sequences are of the same expert, found by the lanes of a simdgroup together.
#pragma once
#include <metal_stdlib>
using namespace metal;

// Lane l < COUNT has pick l's expert; COUNT is at most 32. In lane l `same` becomes the picks of the same expert, a bit
// each. Returns the picks that are the first of their expert.
template <int COUNT>
METAL_FUNC uint distinct_picks(int expert, uint lane, thread uint& same) {
  same = 0u;
#pragma clang loop unroll(full)
  for (int i = 0; i < COUNT; ++i) {
    same |= simd_shuffle(expert, ushort(i)) == expert ? 1u << i : 0u;
  }
  return simd_or(int(lane) < COUNT && ctz(same) == lane ? 1u << lane : 0u);
}
