// computes     logits = W rms_norm(x), -inf for ids that are padding.
// shapes       x [S, K] f32; norm [K]; weight [N, K] (any format); params f32 [8], params[0] = eps;
//              logits [S, N] f32. Ids from VALID on are padding: their rows are not read.
// grid         ceil(N / (SIMDGROUPS * ROWS * PASSES)) threadgroups.
// threadgroup  32 SIMDGROUPS threads; S * TILE chunks of activations in threadgroup memory.
// bytes        VALID rows of the weight and their scales once; x and norm once a threadgroup (from cache).
// why          final norm and projection in one launch; PASSES groups of rows share one staged activation.
// reference    mlx_gptoss/kernels/head.py, head_twin.
#include "project.h"

template <typename V, typename W, typename Q, int FORMAT, int GROUP, int K, int N, int VALID, int S, int ROWS, int SIMDGROUPS,
          int TILE, int UNROLL, int PASSES>
[[kernel]] void head(
    const device float* x [[buffer(0)]],
    const device V* norm [[buffer(1)]],
    const device W* weight [[buffer(2)]],
    const device Q* scales [[buffer(3)]],
    const device Q* biases [[buffer(4)]],
    const device float* params [[buffer(5)]],
    device float* logits [[buffer(6)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  threadgroup float4 staged[tile_size(FORMAT, TILE, S)];
  threadgroup float sums[S * SIMDGROUPS];
  for (int pass = 0; pass < PASSES; ++pass) {
    int group = (int(threadgroup_position_in_grid.x) * PASSES + pass) * SIMDGROUPS;
    int first = (group + int(simdgroup_index_in_threadgroup)) * ROWS;
    float acc[S * ROWS];
    if (group * ROWS < VALID) {
      size_t rows[ROWS];
      for (int r = 0; r < ROWS; ++r) {
        rows[r] = metal::min(first + r, VALID - 1);
      }
      project<FORMAT, GROUP, K, ROWS, SIMDGROUPS, S, TILE, UNROLL, true, false>(
          x, norm, params[0], (const device uint*)weight, scales, biases, rows, pass == 0, staged, sums,
          simdgroup_index_in_threadgroup, thread_index_in_simdgroup, acc);
    }
    if (thread_index_in_simdgroup == 0) {
      for (int r = 0; r < ROWS; ++r) {
        if (first + r < N) {
          for (int s = 0; s < S; ++s) {
            logits[s * N + first + r] = first + r < VALID ? acc[s * ROWS + r] : as_type<float>(0xff800000u);
          }
        }
      }
    }
  }
}
