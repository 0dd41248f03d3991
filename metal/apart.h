// A normed projection of one activation that fits in threadgroup memory whole (project.h), in which STAGERS simdgroups more
// than those that multiply bring the activation there. The others have asked for their weights by then, and neither waits
// for the other's reads, as a simdgroup that asks for both may.
#pragma once
#include "project.h"

// acc[r] = row r times the normed activation in every lane of the first SIMDGROUPS simdgroups; undefined in the others.
// All threads of the threadgroup call it together. `staged` as for project with all of K as the tile; `sums` holds a
// number for each stager.
template <int FORMAT, int GROUP, int K, int R, int SIMDGROUPS, int STAGERS, int UNROLL, typename Row, typename Q, typename N>
METAL_FUNC void project_apart(
    const device float* x,
    const device N* norm,
    float eps,
    const device uint* weight,
    const device Q* scales,
    const device Q* biases,
    const thread Row* rows,
    threadgroup float4* staged,
    threadgroup float* sums,
    uint simdgroup,
    uint lane,
    thread float* acc) {
  constexpr int CHUNKS = K / chunk_values(FORMAT);
  constexpr int L = chunk_values(FORMAT) / 4;
  constexpr int STRIDE = tile_stride(CHUNKS);
  constexpr int THREADS = STAGERS > 0 ? 32 * STAGERS : 1;  // compiled for kernels without stagers, too
  constexpr int EACH = (K / 4 + THREADS - 1) / THREADS;
  Block<Q, R * UNROLL> block;
  bool stages = int(simdgroup) >= SIMDGROUPS;
  if (stages) {
    int thread_index = (int(simdgroup) - SIMDGROUPS) * 32 + int(lane);
    float4 values[EACH];
    float4 norms[EACH];
#pragma clang loop unroll(full)
    for (int i = 0; i < EACH; ++i) {
      int k4 = metal::min(i * THREADS + thread_index, K / 4 - 1);
      values[i] = read4(x, k4);
      norms[i] = read4(norm, k4);
    }
    float squares = 0.0f;
#pragma clang loop unroll(full)
    for (int i = 0; i < EACH; ++i) {
      int k4 = i * THREADS + thread_index;
      if (k4 < K / 4) {
        float4 y = values[i];
        squares += (y.x * y.x + y.y * y.y) + (y.z * y.z + y.w * y.w);
        staged[permuted<L>(k4, STRIDE)] = y * norms[i];
      }
    }
    squares = simd_sum(squares);
    if (lane == 0) {
      sums[int(simdgroup) - SIMDGROUPS] = squares;
    }
  } else {
    load_block<FORMAT, GROUP, K, R, UNROLL>(weight, scales, biases, rows, 0, 0, CHUNKS, lane, block);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (stages) {
    return;
  }
  float sum = 0.0f;
#pragma clang loop unroll(full)
  for (int i = 0; i < STAGERS; ++i) {
    sum += sums[i];
  }
  float factor = metal::rsqrt(sum * (1.0f / float(K)) + eps);
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    acc[r] = 0.0f;
  }
  const threadgroup float4* tile = staged;
  matvec_stream<FORMAT, GROUP, K, R, UNROLL, L>(weight, scales, biases, rows, tile, 0, STRIDE, lane, block, acc);
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    acc[r] = simd_sum(acc[r]) * factor;
  }
}
