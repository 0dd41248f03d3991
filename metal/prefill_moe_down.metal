// computes     y = h W^T + b of every (token, expert) pair, the pairs sorted by expert.
// shapes       h [R, K], by slot; blocks u32 [E, N, K/8] and scales u8 [E, N, K/32], MXFP4; bias [E, N];
//              tiles i32 [T, 4], each expert, first slot, slots (0: nothing to do), unused; y [R, N], by slot.
// grid         ceil(N / BN) x T threadgroups.
// threadgroup  32 SIMD_M SIMD_N threads, 128 (BM + BN) bytes (32 KiB at 128 x 128).
// bytes        each expert's weights once for every BM of its pairs; h once for every BN of N; y once.
// parts        of a tile's PARTS (1, 2 or 4) equal runs of rows, those without a slot are not read or multiplied.
// why          as prefill_moe_gate_up; prefill_moe_sum weighs and adds the TOPK rows of a token afterwards, so no
//              atomics and the same sum on every run.
// reference    mlx_gptoss/kernels/prefill_moe.py, prefill_moe_down_twin.
#include "grouped_matmul.h"

// One tile of BM rows, of which the first `valid` exist.
template <typename T, typename B, int K, int N, int BM, int BN, int SIMD_M, int SIMD_N, bool SUBNORMAL>
METAL_FUNC void down_tile(
    const device T* h,
    const device uint* blocks,
    const device uchar* scales,
    const device B* bias,
    device T* y,
    int expert,
    int first,
    int valid,
    int column,
    threadgroup uint4* memory,
    int simdgroup,
    uint lane) {
  constexpr int SIMDS = SIMD_M * SIMD_N;
  int rows[BM / 8 / SIMDS];
  for (int i = 0; i < BM / 8 / SIMDS; ++i) {
    rows[i] = first + metal::min((i * SIMDS + simdgroup) * 8 + int(lane) % 8, valid - 1);
  }
  TileResult<BM, BN, SIMD_M, SIMD_N> result;
  grouped_tile<T, K, BM, BN, SIMD_M, SIMD_N, SUBNORMAL>(
      h, rows, blocks, scales, expert * N + column, expert * N + N - 1, memory, uint(simdgroup), lane, result);
  PlainRows<T, B, N> to;
  to.bias = bias + expert * N;
  to.y = y;
  write_rows<N>(result, to, first, valid, column, memory, simdgroup, lane);
}

template <typename T, typename B, int K, int N, int BM, int BN, int SIMD_M, int SIMD_N, int PARTS,
          bool SUBNORMAL>
[[kernel]] void prefill_moe_down(
    const device T* h [[buffer(0)]],
    const device uint* blocks [[buffer(1)]],
    const device uchar* scales [[buffer(2)]],
    const device B* bias [[buffer(3)]],
    const device int* tiles [[buffer(4)]],
    device T* y [[buffer(5)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int ONE = tile_part(BM, PARTS, 1);
  constexpr int TWO = tile_part(BM, PARTS, 2);
  constexpr int THREE = tile_part(BM, PARTS, 3);
  threadgroup uint4 memory[grouped_memory(BM, BN)];
  uint lane = thread_index_in_simdgroup;
  int simdgroup = int(simdgroup_index_in_threadgroup);
  const device int* tile = tiles + threadgroup_position_in_grid.y * 4;
  int expert = tile[0];
  int first = tile[1];
  int valid = tile[2];
  int column = int(threadgroup_position_in_grid.x) * BN;
  if (valid > 0) {
    // Sizes that PARTS does not ask for are those of another part or the whole, and never chosen.
    if (ONE < BM && valid <= ONE) {
      down_tile<T, B, K, N, ONE, BN, SIMD_M, SIMD_N, SUBNORMAL>(
          h, blocks, scales, bias, y, expert, first, valid, column, memory, simdgroup, lane);
    } else if (ONE < TWO && valid <= TWO) {
      down_tile<T, B, K, N, TWO, BN, SIMD_M, SIMD_N, SUBNORMAL>(
          h, blocks, scales, bias, y, expert, first, valid, column, memory, simdgroup, lane);
    } else if (TWO < THREE && THREE < BM && valid <= THREE) {
      down_tile<T, B, K, N, THREE, BN, SIMD_M, SIMD_N, SUBNORMAL>(
          h, blocks, scales, bias, y, expert, first, valid, column, memory, simdgroup, lane);
    } else {
      down_tile<T, B, K, N, BM, BN, SIMD_M, SIMD_N, SUBNORMAL>(
          h, blocks, scales, bias, y, expert, first, valid, column, memory, simdgroup, lane);
    }
  }
}
