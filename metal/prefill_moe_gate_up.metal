// computes     h = swiglu(x W^T + b) of every (token, expert) pair, the pairs sorted by expert.
// shapes       x [L, K]; blocks u32 [E, N, K/8] and scales u8 [E, N, K/32], MXFP4, rows gate, linear, gate, ...;
//              bias [E, N]; order i32 [R], the pair (token * TOPK + rank) at each sorted slot; tiles i32 [T, 4], each
//              expert, first slot, slots (0: nothing to do), unused; params f32 [8], [1] the clamp, [2] alpha;
//              h [R, N/2], by slot.
// grid         ceil(N / BN) x T threadgroups.
// threadgroup  32 SIMD_M SIMD_N threads, 128 (BM + BN) bytes (32 KiB at 128 x 128).
// bytes        each expert's weights once for every BM of its pairs; x once for every BN of N; h once.
// parts        of a tile's PARTS (1, 2 or 4) equal runs of rows, those without a slot are not read or multiplied.
// why          stock gather_qmm decodes weights anew for every 16 rows, in tiles that straddle experts, gate and up
//              apart; here a tile belongs to one expert and the activation is done before anything is written.
// reference    mlx_gptoss/kernels/prefill_moe.py, prefill_moe_gate_up_twin.
#include "grouped_matmul.h"

// One tile of BM rows, of which the first `valid` exist.
template <typename T, typename B, int K, int N, int TOPK, int BM, int BN, int SIMD_M, int SIMD_N, bool SUBNORMAL>
METAL_FUNC void gate_up_tile(
    const device T* x,
    const device uint* blocks,
    const device uchar* scales,
    const device B* bias,
    const device int* order,
    const device float* params,
    device T* h,
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
    int r = metal::min((i * SIMDS + simdgroup) * 8 + int(lane) % 8, valid - 1);
    rows[i] = order[first + r] / TOPK;
  }
  TileResult<BM, BN, SIMD_M, SIMD_N> result;
  grouped_tile<T, K, BM, BN, SIMD_M, SIMD_N, SUBNORMAL>(
      x, rows, blocks, scales, expert * N + column, expert * N + N - 1, memory, uint(simdgroup), lane, result);
  SwigluRows<T, B, N> to;
  to.bias = bias + expert * N;
  to.params = params;
  to.h = h;
  write_rows<N>(result, to, first, valid, column, memory, simdgroup, lane);
}

template <typename T, typename B, int K, int N, int TOPK, int BM, int BN, int SIMD_M, int SIMD_N, int PARTS,
          bool SUBNORMAL>
[[kernel]] void prefill_moe_gate_up(
    const device T* x [[buffer(0)]],
    const device uint* blocks [[buffer(1)]],
    const device uchar* scales [[buffer(2)]],
    const device B* bias [[buffer(3)]],
    const device int* order [[buffer(4)]],
    const device int* tiles [[buffer(5)]],
    const device float* params [[buffer(6)]],
    device T* h [[buffer(7)]],
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
      gate_up_tile<T, B, K, N, TOPK, ONE, BN, SIMD_M, SIMD_N, SUBNORMAL>(
          x, blocks, scales, bias, order, params, h, expert, first, valid, column, memory, simdgroup, lane);
    } else if (ONE < TWO && valid <= TWO) {
      gate_up_tile<T, B, K, N, TOPK, TWO, BN, SIMD_M, SIMD_N, SUBNORMAL>(
          x, blocks, scales, bias, order, params, h, expert, first, valid, column, memory, simdgroup, lane);
    } else if (TWO < THREE && THREE < BM && valid <= THREE) {
      gate_up_tile<T, B, K, N, TOPK, THREE, BN, SIMD_M, SIMD_N, SUBNORMAL>(
          x, blocks, scales, bias, order, params, h, expert, first, valid, column, memory, simdgroup, lane);
    } else {
      gate_up_tile<T, B, K, N, TOPK, BM, BN, SIMD_M, SIMD_N, SUBNORMAL>(
          x, blocks, scales, bias, order, params, h, expert, first, valid, column, memory, simdgroup, lane);
    }
  }
}
