// Rows that follow each other without a pause.
#pragma once
#include "matvec.h"

// acc[r] += row r times one activation, where `block` holds the rows whole: at most 32 UNROLL chunks. Where there are
// `more`, each step leaves its place to the same step of the rows `next`, so that loads never cease.
template <int FORMAT, int GROUP, int K, int R, int UNROLL, int L, typename Row, typename Q, typename X>
METAL_FUNC void matvec_rolling(
    const device uint* weight,
    const device Q* scales,
    const thread Row* next,
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
