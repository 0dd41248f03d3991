// computes     of every chunk of a row of logits its largest, and its summed weights at the row's temperature and at 1,
//              beside that largest: exp((logit - largest) / temperature).
// shapes       logits [S, N] f32; settings f32 [S, 8], settings[0] = 1 / temperature;
//              parts f32 [S, ceil(N / CHUNK), 4], at least 2 chunks; the fourth is 0.
// grid         as many chunks x S threadgroups.
// threadgroup  32 SIMDGROUPS threads.
// bytes        the row once.
// why          the vocabulary is read once by the whole GPU; draw_token then needs one chunk of it.
// reference    mlx_gptoss/kernels/draw.py, draw_parts_twin.
#include "draw.h"

template <int N, int CHUNK, int SIMDGROUPS>
[[kernel]] void draw_parts(
    const device float* logits [[buffer(0)]],
    const device float* settings [[buffer(1)]],
    device float* parts [[buffer(2)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint3 threadgroups_per_grid [[threadgroups_per_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int EACH = (CHUNK + THREADS - 1) / THREADS;
  threadgroup float room[SIMDGROUPS];
  threadgroup float sums[2 * SIMDGROUPS];
  int thread_index = int(simdgroup_index_in_threadgroup * 32 + thread_index_in_simdgroup);
  int row = int(threadgroup_position_in_grid.y);
  int base = int(threadgroup_position_in_grid.x) * CHUNK;
  float mine[EACH];
  float best = negative_infinity();
  for (int i = 0; i < EACH; ++i) {
    int inside = i * THREADS + thread_index;
    mine[i] = inside < CHUNK && base + inside < N ? logits[row * N + base + inside] : negative_infinity();
    best = metal::max(best, mine[i]);
  }
  best = group_max<SIMDGROUPS>(best, room, simdgroup_index_in_threadgroup, thread_index_in_simdgroup);
  float inverse = settings[row * 8];
  float weight = 0.0f;
  float plain = 0.0f;
  for (int i = 0; i < EACH; ++i) {
    weight += weight_of(mine[i], best, inverse);
    plain += weight_of(mine[i], best, 1.0f);
  }
  weight = simd_sum(weight);
  plain = simd_sum(plain);
  if (thread_index_in_simdgroup == 0) {
    sums[2 * simdgroup_index_in_threadgroup] = weight;
    sums[2 * simdgroup_index_in_threadgroup + 1] = plain;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_index == 0) {
    weight = 0.0f;
    plain = 0.0f;
    for (int g = 0; g < SIMDGROUPS; ++g) {
      weight += sums[2 * g];
      plain += sums[2 * g + 1];
    }
    int at = 4 * (row * int(threadgroups_per_grid.x) + int(threadgroup_position_in_grid.x));
    parts[at] = best;
    parts[at + 1] = weight;
    parts[at + 2] = plain;
    parts[at + 3] = 0.0f;
  }
}
