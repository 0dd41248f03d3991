// computes     attention_out of one sequence in halves: y = x + W a + b.
// shapes       a [1, K] f32, or with PARTS > 1 parts [K / 64, PARTS, 68] f32 of attention_full, merged here with sinks
//              [K / 64]; weight u32 [N, K bits / 32] (8, 6 or 4 bits or MXFP8), its scales and biases; bias [N]; x, y [1, N]
//              f32, the residual stream.
// grid         ceil(N / (SIMDGROUPS * ROWS)) threadgroups.
// threadgroup  32 SIMDGROUPS threads; a, packed, in threadgroup memory.
// bytes        the weight, its scales and bias, once; a, or all of its parts, once a threadgroup (from cache).
// why          another text of attention_out, for GPUs that multiply two halves at a time (halves.h).
// reference    mlx_gptoss/kernels/attention_out.py, attention_out_twin.
#include "merged.h"
#include "project_halves.h"

template <typename Q, typename B, typename C, int FORMAT, int GROUP, int K, int N, int PARTS, int ROWS, int SIMDGROUPS,
          int UNROLL>
[[kernel]] void attention_out(
    const device float* a [[buffer(0)]],
    const device uint* weight [[buffer(1)]],
    const device Q* scales [[buffer(2)]],
    const device Q* biases [[buffer(3)]],
    const device B* bias [[buffer(4)]],
    const device float* x [[buffer(5)]],
    const device C* sinks [[buffer(6)]],
    device float* y [[buffer(7)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  threadgroup uint4 staged[packed_tile_size(FORMAT, K)];
  int first = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * ROWS;
  // What the end needs is asked for before the weights, or it would be waited for after them.
  bool writes = thread_index_in_simdgroup == 0;
  int rows[ROWS];
  float start[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    rows[r] = metal::min(first + r, N - 1);
    start[r] = writes ? float(bias[rows[r]]) + x[rows[r]] : 0.0f;
  }
  Attended<PARTS, C> attended;
  attended.values = a;
  attended.sinks = sinks;
  float acc[ROWS];
  threadgroup float none[1];
  project_halves<FORMAT, GROUP, K, ROWS, SIMDGROUPS, 0, UNROLL, false>(
      attended, bias, 0.0f, weight, scales, biases, rows, staged, none, simdgroup_index_in_threadgroup,
      thread_index_in_simdgroup, acc);
  if (writes) {
    for (int r = 0; r < ROWS; ++r) {
      if (first + r < N) {
        y[first + r] = start[r] + acc[r];
      }
    }
  }
}
