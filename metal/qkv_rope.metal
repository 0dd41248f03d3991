// computes     q, k, v = rope(W rms_norm(x) + b): the RMS norm, the fused QKV projection, its bias and YaRN's rotation.
// shapes       x [S, K] f32; norm [K]; weight [(HEADS + 2 KV_HEADS) * 64, K] (any format); bias one a row;
//              rope [S, 64] f32, 32 cosines then 32 sines a sequence, YaRN's concentration included;
//              params f32 [8], params[0] = eps; q [S, HEADS, 64] f32; k, v [S, KV_HEADS, 64] in the cache's dtype.
// grid         ceil((HEADS + 2 KV_HEADS) * 32 / (SIMDGROUPS * ROWS / 2)) threadgroups.
// threadgroup  32 (SIMDGROUPS + STAGERS) threads; S * TILE chunks of activations in threadgroup memory. STAGERS (one
//              activation that fits whole): see apart.h.
// bytes        the weight, its scales and bias, once; x and norm once a threadgroup (from cache).
// why          one launch instead of mlx-lm's eight; the norm rides along, the rotation needs rows d and d + 32 of a
//              head, so a simdgroup takes both; one sequence's steps follow each other without a pause.
// reference    mlx_gptoss/kernels/qkv.py, qkv_rope_twin.
#include "apart.h"
#include "heads.h"

template <typename N, typename Q, typename B, typename T, int FORMAT, int GROUP, int K, int HEADS, int KV_HEADS, int ROWS,
          int SIMDGROUPS, int STAGERS, int UNROLL, typename W, int S, int TILE>
[[kernel]] void qkv_rope(
    const device float* x [[buffer(0)]],
    const device N* norm [[buffer(1)]],
    const device W* weight [[buffer(2)]],
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
  threadgroup float4 staged[tile_size(FORMAT, TILE, S)];
  threadgroup float sums[STAGERS > 0 ? STAGERS : S * SIMDGROUPS];
  constexpr int PAIRS = ROWS / 2;
  constexpr int ALL = (HEADS + 2 * KV_HEADS) * 32;
  int first = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * PAIRS;
  size_t rows[ROWS];
  for (int p = 0; p < PAIRS; ++p) {
    int pair = metal::min(first + p, ALL - 1);
    rows[p] = pair / 32 * 64 + pair % 32;
    rows[PAIRS + p] = rows[p] + 32;
  }
  // What the end needs is asked for before the weights, or it would be waited for after them; as it lies in memory, or it
  // would be waited for at once. Lane p ends pair p.
  int lane = int(thread_index_in_simdgroup);
  int mine = lane % PAIRS;
  int own_pair = metal::min(first + mine, ALL - 1);
  int head = own_pair / 32;
  int d = own_pair % 32;
  B low_own = bias[head * 64 + d];
  B high_own = bias[head * 64 + d + 32];
  float cosine[S];
  float sine[S];
  for (int s = 0; s < S; ++s) {
    cosine[s] = rope[s * 64 + d];
    sine[s] = rope[s * 64 + d + 32];
  }
  float acc[S * ROWS];
  if (STAGERS > 0) {
    project_apart<FORMAT, GROUP, K, ROWS, SIMDGROUPS, STAGERS, UNROLL>(
        x, norm, params[0], (const device uint*)weight, scales, biases, rows, staged, sums,
        simdgroup_index_in_threadgroup, thread_index_in_simdgroup, acc);
  } else {
    project<FORMAT, GROUP, K, ROWS, SIMDGROUPS, S, TILE, UNROLL, true, true>(
        x, norm, params[0], (const device uint*)weight, scales, biases, rows, true, staged, sums,
        simdgroup_index_in_threadgroup, thread_index_in_simdgroup, acc);
  }
  if (int(simdgroup_index_in_threadgroup) < SIMDGROUPS && lane < PAIRS && first + mine < ALL) {
    for (int s = 0; s < S; ++s) {
      float low = acc[s * ROWS];
      float high = acc[s * ROWS + PAIRS];
      for (int p = 1; p < PAIRS; ++p) {
        low = mine == p ? acc[s * ROWS + p] : low;
        high = mine == p ? acc[s * ROWS + PAIRS + p] : high;
      }
      low += float(low_own);
      high += float(high_own);
      write_pair<HEADS, KV_HEADS>(low, high, cosine[s], sine[s], head, d, s, q, k, v);
    }
  }
}
