// computes     out = residual + the weighted sum of a token's TOPK expert rows, picked from their sorted slots.
// shapes       y [R, N], by slot; inverse i32 [R], the slot of each pair (token * TOPK + rank); weights f32 [R];
//              residual f32 [L, N]; out f32 [L, N].
// grid         ceil(N / 4 / THREADS) x L threadgroups.
// threadgroup  THREADS threads, no threadgroup memory.
// bytes        y, residual and out once.
// why          un-sorting, weighing, summing and adding are four passes over R x N in stock ops.
// reference    mlx_gptoss/kernels/prefill_moe.py, prefill_moe_sum_twin.
#include "common.h"

template <typename T, int N, int TOPK, int THREADS>
[[kernel]] void prefill_moe_sum(
    const device T* y [[buffer(0)]],
    const device int* inverse [[buffer(1)]],
    const device float* weights [[buffer(2)]],
    const device float* residual [[buffer(3)]],
    device float* out [[buffer(4)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint thread_index_in_threadgroup [[thread_index_in_threadgroup]]) {
  int token = int(threadgroup_position_in_grid.y);
  int i = int(threadgroup_position_in_grid.x) * THREADS + int(thread_index_in_threadgroup);
  if (i < N / 4) {
    float4 sum = read4(residual + size_t(token) * N, i);
#pragma clang loop unroll(full)
    for (int rank = 0; rank < TOPK; ++rank) {
      sum += weights[token * TOPK + rank] * read4(y + size_t(inverse[token * TOPK + rank]) * N, i);
    }
    ((device float4*)(out + size_t(token) * N))[i] = sum;
  }
}
