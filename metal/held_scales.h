// Scales and biases of whole rows of affine weights, which the lanes of a simdgroup hold for each other.
//
// A lane reads those of one group in 32, once, and hands them to the lanes that want them: two reads a step by every lane
// cost nearly as much as the weights'. They have 16 bits, so that a group's two fit a word; steps have whole groups.
#pragma once
#include "packed.h"

// Groups of a row of `groups` that a lane holds.
constexpr int held_groups(int groups) {
  return (groups + 31) / 32;
}

METAL_FUNC uint two_scales(bfloat16_t scale, bfloat16_t bias) {
  return as_type<uint>(bfloat2(scale, bias));
}

METAL_FUNC uint two_scales(half scale, half bias) {
  return as_type<uint>(half2(scale, bias));
}

// Of formats without biases.
METAL_FUNC uint two_scales(uchar, uchar) {
  return 0;
}

METAL_FUNC float2 scales_as_floats(uint two, bfloat16_t) {
  return float2(low_bf16(two), high_bf16(two));
}

METAL_FUNC float2 scales_as_floats(uint two, half) {
  half2 v = as_type<half2>(two);
  return float2(float(v.x), float(v.y));
}

METAL_FUNC float2 scales_as_floats(uint, uchar) {
  return float2(0.0f);
}

// Starts the loads of what this lane holds of R rows of GROUPS groups each; groups beyond the last are zeros.
template <int GROUPS, int R, typename Row, typename Q>
METAL_FUNC void hold_scales(
    const device Q* scales, const device Q* biases, const thread Row* rows, uint lane, thread Q* scale, thread Q* bias) {
#pragma clang loop unroll(full)
  for (int i = 0; i < R * held_groups(GROUPS); ++i) {
    int group = i / R * 32 + int(lane);
    Row at = rows[i % R] * GROUPS + group;
    scale[i] = group < GROUPS ? scales[at] : Q(0.0f);
    bias[i] = group < GROUPS ? biases[at] : Q(0.0f);
  }
}

// The scale and bias of this lane's chunk of step `step`, in which lanes have STEP_GROUPS groups of each row.
// All lanes call it together.
template <int STEP_GROUPS, int R, typename Q>
METAL_FUNC void held_scales(const thread uint* two, int step, uint lane, thread float* scale, thread float* bias) {
  static_assert(32 % STEP_GROUPS == 0, "lanes share a step's groups evenly");
  int group = step * STEP_GROUPS;
  uint from = uint(group % 32) + lane / (32 / STEP_GROUPS);
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    float2 v = scales_as_floats(simd_shuffle(two[group / 32 * R + r], ushort(from)), Q(0.0f));
    scale[r] = v.x;
    bias[r] = v.y;
  }
}
