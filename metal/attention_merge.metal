// computes     attention from its parts, the sink counted here, for up to 8 sequences.
// shapes       p0 ... p7 [HEADS, parts, 68] f32, sequence s has counts[s] parts; sinks [HEADS]; counts i32 [8];
//              out [S, HEADS, 64] f32. Slots from S on are not read.
// grid         HEADS x S threadgroups.
// threadgroup  128 threads: 16 lanes take a float4 of the head each, for 8 parts at a time, 32 of them in one wait.
// bytes        the parts once.
// why          joins a long context's splits, and the sequences of a batch, whose caches are separate arrays.
// reference    mlx_gptoss/kernels/attention.py, attention_merge_twin.
#include "attend.h"

template <typename B, int HEADS, int S>
[[kernel]] void attention_merge(
    const device float* p0 [[buffer(0)]],
    const device float* p1 [[buffer(1)]],
    const device float* p2 [[buffer(2)]],
    const device float* p3 [[buffer(3)]],
    const device float* p4 [[buffer(4)]],
    const device float* p5 [[buffer(5)]],
    const device float* p6 [[buffer(6)]],
    const device float* p7 [[buffer(7)]],
    const device B* sinks [[buffer(8)]],
    const device int* counts [[buffer(9)]],
    device float* out [[buffer(10)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint3 thread_position_in_threadgroup [[thread_position_in_threadgroup]]) {
  threadgroup float4 memory[8 * 16];
  threadgroup float2 stats[8];
  constexpr int AHEAD = 4;  // parts a group of lanes loads before it waits
  int head = int(threadgroup_position_in_grid.x);
  int s = int(threadgroup_position_in_grid.y);
  int thread_index = int(thread_position_in_threadgroup.x);
  int column = thread_index % 16;
  int group = thread_index / 16;
  const device float* parts = p0;
  if (S > 1 && s == 1) parts = p1;
  if (S > 2 && s == 2) parts = p2;
  if (S > 3 && s == 3) parts = p3;
  if (S > 4 && s == 4) parts = p4;
  if (S > 5 && s == 5) parts = p5;
  if (S > 6 && s == 6) parts = p6;
  if (S > 7 && s == 7) parts = p7;
  int count = counts[s];
  float sink = float(sinks[head]) * 1.44269504f;
  parts += head * count * ATTEND_PART;
  float4 sum = float4(0.0f);
  float top = -1e30f;
  float denominator = 0.0f;
#pragma clang loop unroll(disable)
  for (int base = 0; base < count; base += 8 * AHEAD) {
    float4 sums[AHEAD];
    float2 stat[AHEAD];
#pragma clang loop unroll(full)
    for (int r = 0; r < AHEAD; ++r) {
      // Past the end the last part is read again, for nothing.
      int part = metal::min(base + 8 * r + group, count - 1);
      sums[r] = read4(parts, part * (ATTEND_PART / 4) + column);
    }
    // Holds these loads before the others, on which a chain of arithmetic waits.
    simdgroup_barrier(mem_flags::mem_none);
#pragma clang loop unroll(full)
    for (int r = 0; r < AHEAD; ++r) {
      int part = metal::min(base + 8 * r + group, count - 1);
      stat[r] = ((const device float2*)parts)[part * (ATTEND_PART / 2) + ATTEND_DIM / 2];
    }
    float next = top;
#pragma clang loop unroll(full)
    for (int r = 0; r < AHEAD; ++r) {
      stat[r].x = base + 8 * r + group < count ? stat[r].x : no_score();
      next = metal::max(next, stat[r].x);
    }
    float shrink = metal::fast::exp2(top - next);
    sum = sum * shrink;
    denominator *= shrink;
    top = next;
#pragma clang loop unroll(full)
    for (int r = 0; r < AHEAD; ++r) {
      float factor = metal::fast::exp2(stat[r].x - next);
      sum = sum + sums[r] * factor;
      denominator = metal::fma(stat[r].y, factor, denominator);
    }
  }
  memory[thread_index] = sum;
  if (column == 0) {
    stats[group] = float2(top, denominator);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index < 16) {
    float all = sink;
#pragma clang loop unroll(full)
    for (int g = 0; g < 8; ++g) {
      all = metal::max(all, stats[g].x);
    }
    float4 result = float4(0.0f);
    float total = metal::fast::exp2(sink - all);
#pragma clang loop unroll(full)
    for (int g = 0; g < 8; ++g) {
      float factor = metal::fast::exp2(stats[g].x - all);
      result = result + memory[16 * g + thread_index] * factor;
      total = metal::fma(stats[g].y, factor, total);
    }
    ((device float4*)out)[(s * HEADS + head) * 16 + thread_index] = result * (1.0f / total);
  }
}
