// One sequence's attention as it comes: whole, or in parts that are merged as they are read, the sink counted here.
#pragma once
#include "common.h"

// `values` are [HEADS, 64] for one part, else [HEADS, PARTS, 68] as attention_full leaves them (attend.h).
template <int PARTS, typename B>
struct Attended {
  const device float* values;
  const device B* sinks;
};

// The i-th group of four values. All loads are independent, so one wait serves them.
template <int PARTS, typename B>
METAL_FUNC float4 read4(Attended<PARTS, B> x, int i) {
  if (PARTS == 1) {
    return read4(x.values, i);
  }
  int head = i / 16;
  float4 sums[PARTS];
  float2 stats[PARTS];
  const device float* part = x.values + head * PARTS * 68;
#pragma clang loop unroll(full)
  for (int p = 0; p < PARTS; ++p) {
    sums[p] = read4(part, p * 17 + i % 16);
    stats[p] = ((const device float2*)part)[p * 34 + 32];
  }
  float sink = float(x.sinks[head]) * 1.44269504f;
  float top = sink;
#pragma clang loop unroll(full)
  for (int p = 0; p < PARTS; ++p) {
    top = metal::max(top, stats[p].x);
  }
  float4 sum = float4(0.0f);
  float total = metal::exp2(sink - top);
#pragma clang loop unroll(full)
  for (int p = 0; p < PARTS; ++p) {
    float factor = metal::exp2(stats[p].x - top);
    sum = sum + sums[p] * factor;
    total += stats[p].y * factor;
  }
  return sum * (1.0f / total);
}
