// computes     y = x + W a + b: attention's output projection, its bias and the residual.
// shapes       a [S, K] f32, or with PARTS > 1 (S = 1) parts [K / 64, PARTS, 68] f32 of attention_full, merged here with
//              sinks [K / 64]; weight [N, K] (any format); bias [N]; x, y [S, N] f32, the residual stream.
// grid         ceil(N / (SIMDGROUPS * ROWS)) threadgroups.
// threadgroup  32 SIMDGROUPS threads; S * TILE chunks of activations in threadgroup memory.
// bytes        the weight, its scales and bias, once; a, or all of its parts, once a threadgroup (from cache).
// why          bias and residual cost no launch and the stream stays in float; a few parts are read again by every
//              threadgroup in less time than attention_merge takes.
// reference    mlx_gptoss/kernels/attention_out.py, attention_out_twin.
#include "merged.h"
#include "project.h"

template <typename Q, typename B, typename C, int FORMAT, int GROUP, int K, int N, int PARTS, int ROWS, int SIMDGROUPS,
          int UNROLL, typename W, int S, int TILE>
[[kernel]] void attention_out(
    const device float* a [[buffer(0)]],
    const device W* weight [[buffer(1)]],
    const device Q* scales [[buffer(2)]],
    const device Q* biases [[buffer(3)]],
    const device B* bias [[buffer(4)]],
    const device float* x [[buffer(5)]],
    const device C* sinks [[buffer(6)]],
    device float* y [[buffer(7)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  threadgroup float4 staged[tile_size(FORMAT, TILE, S)];
  threadgroup float sums[S * SIMDGROUPS];
  int first = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
  size_t rows[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    rows[r] = metal::min(first + r, N - 1);
  }
  // What the end needs is asked for before the weights, or it would be waited for after them.
  bool writes = thread_index_in_simdgroup == 0;
  float start[S * ROWS];
  for (int r = 0; r < ROWS; ++r) {
    float own = writes ? float(bias[rows[r]]) : 0.0f;
    for (int s = 0; s < S; ++s) {
      start[s * ROWS + r] = own + (writes ? x[s * N + rows[r]] : 0.0f);
    }
  }
  Attended<PARTS, C> attended;
  attended.values = a;
  attended.sinks = sinks;
  float acc[S * ROWS];
  project<FORMAT, GROUP, K, ROWS, SIMDGROUPS, S, TILE, UNROLL, false, false>(
      attended, bias, 0.0f, (const device uint*)weight, scales, biases, rows, true, staged, sums,
      simdgroup_index_in_threadgroup, thread_index_in_simdgroup, acc);
  if (writes) {
    for (int r = 0; r < ROWS; ++r) {
      if (first + r < N) {
        for (int s = 0; s < S; ++s) {
          y[s * N + first + r] = start[s * ROWS + r] + acc[s * ROWS + r];
        }
      }
    }
  }
}
