// What the expert kernels have beyond a matrix-vector product: rows that follow each other without a pause, and sums over
// the simdgroup of several rows at once.
#pragma once
#include "matvec.h"

// acc[r] += row r times one activation, where `block` holds the rows whole: at most 32 UNROLL chunks. Where there are
// `more`, each step leaves its place to the same step of the rows `next`, so that loads never cease.
template <int FORMAT, int GROUP, int K, int R, int UNROLL, int L, typename Q, typename X>
METAL_FUNC void matvec_rolling(
    const device uint* weight,
    const device Q* scales,
    const thread size_t* next,
    bool more,
    X x,
    int offset,
    int stride,
    uint lane,
    thread Block<Q, R * UNROLL>& block,
    thread float* acc) {
  constexpr int COUNT = K / chunk_values(FORMAT);
#pragma clang loop unroll(full)
  for (int u = 0; u < UNROLL; ++u) {
    multiply_step<FORMAT, R, 1, L>(block, u, lane_chunk<COUNT>(u, lane), x, &offset, stride, lane, acc);
    if (more) {
      load_step<FORMAT, GROUP, K, R>(weight, scales, scales, next, 0, u * 32 + int(lane), COUNT, u, block);
    }
    simdgroup_barrier(mem_flags::mem_none);
  }
}

// Asks for this thread's share of COUNT float4s of permuted activations, which keep_activations puts in threadgroup
// memory: what else a kernel needs first is asked for in between.
template <int COUNT, int THREADS, typename X>
METAL_FUNC void ask_activations(X x, int thread_index, thread float4* values) {
#pragma clang loop unroll(full)
  for (int i = 0; i * THREADS < COUNT; ++i) {
    if (i * THREADS + thread_index < COUNT) {
      values[i] = read4(x, i * THREADS + thread_index);
    }
  }
}

template <int COUNT, int THREADS>
METAL_FUNC void keep_activations(const thread float4* values, int thread_index, threadgroup float4* staged) {
#pragma clang loop unroll(full)
  for (int i = 0; i * THREADS < COUNT; ++i) {
    if (i * THREADS + thread_index < COUNT) {
      staged[i * THREADS + thread_index] = values[i];
    }
  }
}

// The sums over the simdgroup of R numbers a lane, R a power of two: lane l gets that of v[l / (32 / R)]. A step hands
// half of the numbers over and halves them, where R calls of simd_sum would add all of them to the end.
template <int R>
METAL_FUNC float simd_sums(thread float* v, uint lane) {
#pragma clang loop unroll(full)
  for (int n = R / 2; n > 0; n /= 2) {
    int far = 32 * n / R;
    bool upper = (int(lane) & far) != 0;
#pragma clang loop unroll(full)
    for (int i = 0; i < n; ++i) {
      float give = upper ? v[i] : v[i + n];
      v[i] = (upper ? v[i + n] : v[i]) + simd_shuffle_xor(give, ushort(far));
    }
  }
  float sum = v[0];
#pragma clang loop unroll(full)
  for (int far = 16 / R; far > 0; far /= 2) {
    sum += simd_shuffle_xor(sum, ushort(far));
  }
  return sum;
}
