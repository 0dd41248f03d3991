// Sums, picks and bounds over the logits of one row by one threadgroup, always in the same order.
#pragma once
#include <metal_stdlib>
using namespace metal;

METAL_FUNC float negative_infinity() {
  return as_type<float>(0xff800000u);
}

// A logit's weight beside a peak; nothing for what is forbidden, NaN for what is broken.
METAL_FUNC float weight_of(float logit, float peak, float inverse) {
  return logit == negative_infinity() ? 0.0f : metal::exp((logit - peak) * inverse);
}

template <int SIMDGROUPS>
METAL_FUNC float group_max(float own, threadgroup float* room, uint simdgroup, uint lane) {
  float best = simd_max(own);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 0) {
    room[simdgroup] = best;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll_count(4)
  for (int g = 0; g < SIMDGROUPS; ++g) {
    best = metal::max(best, room[g]);
  }
  return best;
}

// The sum of `own` over the threads up to this one, and over all of them.
template <int SIMDGROUPS>
METAL_FUNC float running_sum(float own, threadgroup float* room, uint simdgroup, uint lane, thread float& total) {
  float inside = simd_prefix_inclusive_sum(own);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 31) {
    room[simdgroup] = inside;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float before = 0.0f;
  total = 0.0f;
#pragma clang loop unroll_count(4)
  for (int g = 0; g < SIMDGROUPS; ++g) {
    before = g == int(simdgroup) ? total : before;
    total += room[g];
  }
  return before + inside;
}

// The first thread that has weight and whose running sum `end` passes the target, or the last that has weight: sums in
// different orders may differ in the last bit. -1 when none has.
template <int SIMDGROUPS>
METAL_FUNC int pick_thread(float own, float end, float target, threadgroup int* room, uint simdgroup, uint lane) {
  int index = int(simdgroup * 32 + lane);
  int first = simd_min(own > 0.0f && end > target ? index : 0x7fffffff);
  int last = simd_max(own > 0.0f ? index : -1);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 0) {
    room[2 * simdgroup] = first;
    room[2 * simdgroup + 1] = last;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll_count(4)
  for (int g = 0; g < SIMDGROUPS; ++g) {
    first = metal::min(first, room[2 * g]);
    last = metal::max(last, room[2 * g + 1]);
  }
  return first == 0x7fffffff ? last : first;
}

// What one thread's SPAN neighbours of CHUNKS weights come to.
template <int CHUNKS, int SPAN>
METAL_FUNC float span_sum(const threadgroup float* weights, int thread_index) {
  float sum = 0.0f;
  for (int c = thread_index * SPAN; c < metal::min((thread_index + 1) * SPAN, CHUNKS); ++c) {
    sum += weights[c];
  }
  return sum;
}
