// computes     qkv_rope of one sequence in halves: q, k, v = rope(W rms_norm(x) + b).
// shapes       x [1, K] f32; norm [K]; weight u32 [(HEADS + 2 KV_HEADS) * 64, K bits / 32] (8, 6 or 4 bits or MXFP8), its
//              scales and biases; bias one a row; rope [1, 64] f32, 32 cosines then 32 sines; params f32 [8], params[0] =
//              eps; q [1, HEADS, 64] f32; k, v [1, KV_HEADS, 64] in the cache's dtype.
// grid         ceil((HEADS + 2 KV_HEADS) * 32 / (SIMDGROUPS * ROWS / 2)) threadgroups.
// threadgroup  32 (SIMDGROUPS + STAGERS) threads; the activation, packed, in threadgroup memory.
// bytes        the weight, its scales and bias, once; x and norm once a threadgroup (from cache).
// why          another text of qkv_rope, for GPUs that multiply two halves at a time (halves.h).
// reference    mlx_gptoss/kernels/qkv.py, qkv_rope_twin.
#include "heads.h"
#include "project_halves.h"

template <typename N, typename Q, typename B, typename T, int FORMAT, int GROUP, int K, int HEADS, int KV_HEADS, int ROWS,
          int SIMDGROUPS, int STAGERS, int UNROLL>
[[kernel]] void qkv_rope(
    const device float* x [[buffer(0)]],
    const device N* norm [[buffer(1)]],
    const device uint* weight [[buffer(2)]],
    const device Q* scales [[buffer(3)]],
    const device Q* biases [[buffer(4)]],
    const device B* bias [[buffer(5)]],
    const device float* rope [[buffer(6)]],
    const device float* params [[buffer(7)]],
    device float* q [[buffer(8)]],
    device T* k [[buffer(9)]],
    device T* v [[buffer(10)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  threadgroup uint4 staged[packed_tile_size(FORMAT, K)];
  threadgroup float sums[SIMDGROUPS + STAGERS];
  constexpr int PAIRS = ROWS / 2;
  constexpr int ALL = (HEADS + 2 * KV_HEADS) * 32;
  int first = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * PAIRS;
  int rows[ROWS];
  for (int p = 0; p < PAIRS; ++p) {
    int pair = metal::min(first + p, ALL - 1);
    rows[p] = pair / 32 * 64 + pair % 32;
    rows[PAIRS + p] = rows[p] + 32;
  }
  // What the end needs is asked for before the weights, as it lies in memory, or it would be waited for. Lane p ends pair p.
  int lane = int(thread_index_in_simdgroup);
  int mine = lane % PAIRS;
  int own_pair = metal::min(first + mine, ALL - 1);
  int head = own_pair / 32;
  int d = own_pair % 32;
  B low_own = bias[head * 64 + d];
  B high_own = bias[head * 64 + d + 32];
  float cosine = rope[d];
  float sine = rope[d + 32];
  float acc[ROWS];
  project_halves<FORMAT, GROUP, K, ROWS, SIMDGROUPS, STAGERS, UNROLL, true>(
      x, norm, params[0], weight, scales, biases, rows, staged, sums, simdgroup_index_in_threadgroup,
      thread_index_in_simdgroup, acc);
  if (int(simdgroup_index_in_threadgroup) < SIMDGROUPS && lane < PAIRS && first + mine < ALL) {
    float low = acc[0];
    float high = acc[PAIRS];
    for (int p = 1; p < PAIRS; ++p) {
      low = mine == p ? acc[p] : low;
      high = mine == p ? acc[PAIRS + p] : high;
    }
    low += float(low_own);
    high += float(high_own);
    write_pair<HEADS, KV_HEADS>(low, high, cosine, sine, head, d, 0, q, k, v);
  }
}
