// computes     the COUNT largest of each row and their ids, best first, ties to the lower id, without sorting.
// shapes       values [S, N] f32; ids i32 [S, N], or with FIRST anything: a value's id is then its position;
//              best f32 and best_ids i32 [S, ceil(N / CHUNK), COUNT]. COUNT <= CHUNK; -inf and id -1 pad the end.
// grid         ceil(N / CHUNK) x S threadgroups.
// threadgroup  32 SIMDGROUPS threads.
// bytes        the row once.
// why          run twice, the second time over the first one's winners: two small launches where a sort takes many.
// reference    mlx_gptoss/kernels/top_tokens.py, top_tokens_twin.
#include <metal_stdlib>
using namespace metal;

template <int N, int CHUNK, int COUNT, int SIMDGROUPS, bool FIRST>
[[kernel]] void top_tokens(
    const device float* values [[buffer(0)]],
    const device int* ids [[buffer(1)]],
    device float* best [[buffer(2)]],
    device int* best_ids [[buffer(3)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint3 threadgroups_per_grid [[threadgroups_per_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int EACH = (CHUNK + THREADS - 1) / THREADS;
  threadgroup float group_best[2 * SIMDGROUPS];
  threadgroup int group_ids[2 * SIMDGROUPS];
  int thread_index = int(simdgroup_index_in_threadgroup * 32 + thread_index_in_simdgroup);
  int row = int(threadgroup_position_in_grid.y);
  int base = int(threadgroup_position_in_grid.x) * CHUNK;
  float mine[EACH];
  int mine_ids[EACH];
  for (int i = 0; i < EACH; ++i) {
    int local_at = i * THREADS + thread_index;
    int at = base + local_at;
    bool inside = local_at < CHUNK && at < N;
    mine[i] = as_type<float>(0xff800000u);
    mine_ids[i] = 0x7fffffff;
    if (inside) {
      float value = values[row * N + at];
      int id = FIRST ? at : ids[row * N + at];
      if (value > as_type<float>(0xff800000u) && id >= 0) {
        mine[i] = value;
        mine_ids[i] = id;
      }
    }
  }
  for (int round = 0; round < COUNT; ++round) {
    float top = mine[0];
    int id = mine_ids[0];
    for (int i = 1; i < EACH; ++i) {
      if (mine[i] > top || (mine[i] == top && mine_ids[i] < id)) {
        top = mine[i];
        id = mine_ids[i];
      }
    }
    float value = simd_max(top);
    int winner = simd_min(top == value ? id : 0x7fffffff);
    int side = round % 2 * SIMDGROUPS;
    if (thread_index_in_simdgroup == 0) {
      group_best[side + int(simdgroup_index_in_threadgroup)] = value;
      group_ids[side + int(simdgroup_index_in_threadgroup)] = winner;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int g = 0; g < SIMDGROUPS; ++g) {
      float other = group_best[side + g];
      int other_id = group_ids[side + g];
      if (other > value || (other == value && other_id < winner)) {
        value = other;
        winner = other_id;
      }
    }
    for (int i = 0; i < EACH; ++i) {
      if (mine_ids[i] == winner) {
        mine[i] = as_type<float>(0xff800000u);
        mine_ids[i] = 0x7fffffff;
      }
    }
    if (thread_index == 0) {
      int at = (row * int(threadgroups_per_grid.x) + int(threadgroup_position_in_grid.x)) * COUNT + round;
      best[at] = value;
      best_ids[at] = winner == 0x7fffffff ? -1 : winner;
    }
  }
}
