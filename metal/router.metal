// computes     t = rms_norm(x) and the router's logits W t + b.
// shapes       x [S, K] f32; norm [K]; weight [E, K] (f32 or bf16); bias [E]; params f32 [8], params[0] = eps;
//              t [S, 8, K/32, 4], the normed activation permuted for the expert kernels, or with PACKED
//              packed halves [S, 8 halves_size(K/32)] (packed.h); logits [S, E] f32.
// grid         ceil(E / (SIMDGROUPS * ROWS)) threadgroups.
// threadgroup  32 SIMDGROUPS threads; S * TILE chunks of activations in threadgroup memory.
// bytes        the weight and bias once; x and norm once a threadgroup (from cache); t and the logits written once.
// why          the normed activation is written once, in the order in which the next kernel's lanes read it.
// reference    mlx_gptoss/kernels/router.py, router_twin.
#include "packed.h"
#include "project.h"

template <typename V, typename W, typename B, typename A, int FORMAT, int K, int E, int S, int ROWS, int SIMDGROUPS, int TILE,
          int UNROLL, bool PACKED>
[[kernel]] void router(
    const device float* x [[buffer(0)]],
    const device V* norm [[buffer(1)]],
    const device W* weight [[buffer(2)]],
    const device B* bias [[buffer(3)]],
    const device float* params [[buffer(4)]],
    device A* t [[buffer(5)]],
    device float* logits [[buffer(6)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint3 threadgroups_per_grid [[threadgroups_per_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  threadgroup float4 staged[tile_size(FORMAT, TILE, S)];
  threadgroup float sums[S * SIMDGROUPS];
  int first = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
  size_t rows[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    rows[r] = metal::min(first + r, E - 1);
  }
  B own[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    own[r] = bias[rows[r]];
  }
  float acc[S * ROWS];
  project<FORMAT, 32, K, ROWS, SIMDGROUPS, S, TILE, UNROLL, true, false>(
      x, norm, params[0], (const device uint*)weight, bias, bias, rows, true, staged, sums,
      simdgroup_index_in_threadgroup, thread_index_in_simdgroup, acc);
  if (thread_index_in_simdgroup == 0) {
    for (int r = 0; r < ROWS; ++r) {
      if (first + r < E) {
        for (int s = 0; s < S; ++s) {
          logits[s * E + first + r] = acc[s * ROWS + r] + float(own[r]);
        }
      }
    }
  }
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int PLACES = halves_size(K / 32);
  int simdgroup = int(simdgroup_index_in_threadgroup);
  int lane = int(thread_index_in_simdgroup);
  for (int s = 0; s < S; ++s) {
    float sum = 0.0f;
    for (int i = 0; i < SIMDGROUPS; ++i) {
      sum += sums[s * SIMDGROUPS + i];
    }
    float factor = metal::rsqrt(sum / float(K) + params[0]);
    // A simdgroup at a time, so that its lanes can compare.
    int step = THREADS * int(threadgroups_per_grid.x);
    for (int from = (int(threadgroup_position_in_grid.x) * SIMDGROUPS + simdgroup) * 32; from < K / 4; from += step) {
      int i = from + lane;
      bool writes = i < K / 4;
      i = metal::min(i, K / 4 - 1);
      float4 y = read4(x, s * (K / 4) + i) * factor * read4(norm, i);
      if (PACKED) {
        // Eight lanes have a block.
        uint exponent = halves_exponent(largest_of_block(y));
        y = y * halves_up(FORMAT_MXFP4, exponent);
        if (writes && i % 8 == 0) {
          ((device float*)t)[s * (4 * PLACES) + 16 * (K / 32) + i / 8] = halves_down(FORMAT_MXFP4, exponent);
        }
      }
      if (writes) {
        int at = PACKED ? s * (8 * PLACES) + halves_place(K / 32, i / 8, i % 8 * 4) : s * K + 4 * permuted<8>(i, K / 32);
        constexpr int NEXT = PACKED ? 2 : 1;
        t[at] = A(y.x);
        t[at + NEXT] = A(y.y);
        t[at + 2 * NEXT] = A(y.z);
        t[at + 3 * NEXT] = A(y.w);
      }
    }
  }
}
