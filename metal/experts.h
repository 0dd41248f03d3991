// What a step's expert kernels have in common: activations on their way to threadgroup memory, and sums over the simdgroup
// of several rows at once.
#pragma once
#include "common.h"

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

// Rows `first` .. of an expert's N, counted from there, none beyond its end.
template <int N, int ROWS>
METAL_FUNC void rows_from(int first, thread int* rows) {
  for (int r = 0; r < ROWS; ++r) {
    rows[r] = N % ROWS == 0 ? r : metal::min(r, N - first - 1);
  }
}
