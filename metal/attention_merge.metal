// computes     attention from its parts, the sink counted here, for up to 8 sequences.
// shapes       p0 ... p7 [HEADS, parts, 68] f32, sequence s has counts[s] parts; sinks [HEADS]; counts i32 [8];
//              out [S, HEADS, 64] f32. Slots from S on are not read.
// grid         HEADS x S threadgroups.
// threadgroup  128 threads: 16 lanes take a float4 of the head each, for 8 parts at a time.
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
  threadgroup float stats[8 * 2];
  int head = int(threadgroup_position_in_grid.x);
  int s = int(threadgroup_position_in_grid.y);
  int thread_index = int(thread_position_in_threadgroup.x);
  int column = thread_index % 16;
  int group = thread_index / 16;
  const device float* parts = p0;
  if (s == 1) parts = p1;
  if (s == 2) parts = p2;
  if (s == 3) parts = p3;
  if (s == 4) parts = p4;
  if (s == 5) parts = p5;
  if (s == 6) parts = p6;
  if (s == 7) parts = p7;
  int count = counts[s];
  parts += head * count * ATTEND_PART;
  float4 sum = float4(0.0f);
  float top = -1e30f;
  float denominator = 0.0f;
  for (int i = group; i < count; i += 8) {
    float4 o = read4(parts, i * (ATTEND_PART / 4) + column);
    float m = parts[i * ATTEND_PART + ATTEND_DIM];
    float l = parts[i * ATTEND_PART + ATTEND_DIM + 1];
    float next = metal::max(top, m);
    float shrink = metal::exp2(top - next);
    float factor = metal::exp2(m - next);
    sum = sum * shrink + o * factor;
    denominator = denominator * shrink + l * factor;
    top = next;
  }
  memory[thread_index] = sum;
  if (column == 0) {
    stats[2 * group] = top;
    stats[2 * group + 1] = denominator;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index < 16) {
    float sink = float(sinks[head]) * 1.44269504f;
    float all = sink;
    for (int g = 0; g < 8; ++g) {
      all = metal::max(all, stats[2 * g]);
    }
    float4 result = float4(0.0f);
    float total = metal::exp2(sink - all);
    for (int g = 0; g < 8; ++g) {
      float factor = metal::exp2(stats[2 * g] - all);
      result = result + memory[16 * g + thread_index] * factor;
      total += stats[2 * g + 1] * factor;
    }
    ((device float4*)out)[(s * HEADS + head) * 16 + thread_index] = result * (1.0f / total);
  }
}
