// computes     prefill_moe_down where four simdgroups multiply together: y = h W^T + b of every pair.
// shapes       h [R, K], by slot; blocks u32 [E, N, K/8] and scales u8 [E, N, K/32], MXFP4; bias [E, N];
//              tiles i32 [T, 4], each expert, first slot, slots (0: nothing to do), unused; y [R, N], by slot.
// grid         ceil(N / BN) x T threadgroups.
// threadgroup  32 SIMD_M SIMD_N threads, MEMORY bytes (191 KiB at 128 x 256): see together_memory.
// bytes        each expert's weights once for every BM of its pairs; h once for every BN of N; y once.
// parts        of a tile's PARTS (1 or 2) equal runs of rows, those without a slot are not read or multiplied.
// why          another text of prefill_moe_down, for GPUs on which four simdgroups multiply together and copies need no
//              registers (grouped_together.h). K is a multiple of 64, and so are the N * K / 32 scales of an expert of 16.
// reference    mlx_gptoss/kernels/prefill_moe.py, prefill_moe_down_twin.
#include "grouped_together.h"

// One tile of BM rows, of which the first `valid` exist.
template <typename T, typename B, int K, int N, int BM, int BN, int SIMD_M, int SIMD_N, int BUFFERS,
          bool SUBNORMAL>
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
  constexpr int LOADS = BM / 4 / SIMDS;
  int rows[LOADS];
  for (int i = 0; i < LOADS; ++i) {
    rows[i] = first + metal::min(together_row<SIMDS>(i, simdgroup, lane), valid - 1);
  }
  TileResult<BM, BN, SIMD_M, SIMD_N> result;
  together_tile<T, K, BM, BN, SIMD_M, SIMD_N, BUFFERS, SUBNORMAL>(
      h, rows, blocks, scales, expert * N + column, expert * N + N - 1, memory, uint(simdgroup), lane, result);
  PlainRows<T, B, N> to;
  to.bias = bias + expert * N;
  to.y = y;
  write_rows<N>(result, to, first, valid, column, memory, simdgroup, lane);
}

template <typename T, typename B, int K, int N, int BM, int BN, int SIMD_M, int SIMD_N, int PARTS, int BUFFERS,
          int MEMORY, bool SUBNORMAL>
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
  constexpr int PART = BM / PARTS;
  static_assert(MEMORY >= 16 * together_memory(BM, BN, K, BUFFERS), "too little for the operands");
  static_assert(MEMORY >= 32 * SIMD_M * SIMD_N * strip_stride(BN / SIMD_N / 8), "too little for the results");
  threadgroup uint4 memory[MEMORY / 16];
  uint lane = thread_index_in_simdgroup;
  int simdgroup = int(simdgroup_index_in_threadgroup);
  const device int* tile = tiles + threadgroup_position_in_grid.y * 4;
  int expert = tile[0];
  int first = tile[1];
  int valid = tile[2];
  int column = int(threadgroup_position_in_grid.x) * BN;
  if (valid > PART) {
    down_tile<T, B, K, N, BM, BN, SIMD_M, SIMD_N, BUFFERS, SUBNORMAL>(
        h, blocks, scales, bias, y, expert, first, valid, column, memory, simdgroup, lane);
  } else if (valid > 0) {
    down_tile<T, B, K, N, PART, BN, SIMD_M, SIMD_N, BUFFERS, SUBNORMAL>(
        h, blocks, scales, bias, y, expert, first, valid, column, memory, simdgroup, lane);
  }
}
