// computes     moe_down of several sequences' packed activations: y = x + sum over each one's experts of weight * (W h + b).
// shapes       h [S TOPK, 8 halves_size(K/32)] f16, packed (packed.h); picks i32 and weights f32 [>= S TOPK] (see
//              moe_gate_up); weight u32 [E, N, K/8] and scales u8 [E, N, K/32], MXFP4; bias [E, N]; x, y [S, N] f32.
// grid         ceil(N / (SIMDGROUPS * ROWS)) threadgroups.
// threadgroup  32 SIMDGROUPS threads, none of which waits for another; 32 UNROLL lanes take a row. S TOPK and S * ROWS are
//              at most 32.
// bytes        the rows of each distinct expert once; h once for ROWS rows (from cache).
// why          another text of moe_down, for GPUs that multiply two halves at a time (halves.h). Rows stay in registers
//              while they meet all activations that chose their expert, and are replaced by the next expert's meanwhile;
//              the sequences add up in the lanes.
// reference    mlx_gptoss/kernels/moe.py, moe_down_twin.
#include "halves.h"
#include "members.h"

template <typename B, int FORMAT, int K, int N, int TOPK, int ROWS, int SIMDGROUPS, int UNROLL, int S>
[[kernel]] void moe_down(
    const device half* h [[buffer(0)]],
    const device int* picks [[buffer(1)]],
    const device float* weights [[buffer(2)]],
    const device uint* weight [[buffer(3)]],
    const device uchar* scales [[buffer(4)]],
    const device B* bias [[buffer(5)]],
    const device float* x [[buffer(6)]],
    device float* y [[buffer(7)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int COUNT = K / 32;
  constexpr int WORDS = N * row_words(FORMAT, K);
  constexpr int SCALES = N * COUNT;
  constexpr int EACH = halves_size(COUNT);
  constexpr int PICKS = S * TOPK;
  uint lane = thread_index_in_simdgroup;
  int first = (int(threadgroup_position_in_grid.x) * SIMDGROUPS + int(simdgroup_index_in_threadgroup)) * ROWS;
  if (first >= N) {
    return;
  }
  int rows[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    rows[r] = metal::min(first + r, N - 1);
  }
  // Lane l has pick l, and ends row l % ROWS of sequence l / ROWS. What the end needs is asked for before the weights, or
  // it would be waited for after them.
  bool picked = int(lane) < PICKS;
  int expert = picked ? picks[lane] : -1;
  float share = picked ? weights[lane] : 0.0f;
  B own[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    own[r] = picked ? bias[size_t(expert) * N + rows[r]] : B(0.0f);
  }
  int row = first + int(lane) % ROWS;
  bool writes = int(lane) < S * ROWS && row < N;
  int at = int(lane) / ROWS * N + row;
  float start = writes ? x[at] : 0.0f;
  uint same = 0u;
  uint left = distinct_picks<PICKS>(expert, lane, same);
  int pick = int(ctz(left));
  int chosen = simd_shuffle(expert, ushort(pick));
  const device uint* words = weight + size_t(chosen) * WORDS;
  const device uchar* scale = scales + size_t(chosen) * SCALES;
  Block<uchar, ROWS * UNROLL> block;
  load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scale, scale, rows, 0, 0, COUNT, lane, block);
  simdgroup_barrier(mem_flags::mem_none);
  float acc[S * ROWS];
#pragma clang loop unroll(full)
  for (int i = 0; i < S * ROWS; ++i) {
    acc[i] = int(lane) / TOPK == i / ROWS ? share * float(own[i % ROWS]) : 0.0f;
  }
#pragma clang loop unroll(disable)
  while (left != 0u) {
    uint members = simd_shuffle(same, ushort(pick));
    left &= left - 1u;
    pick = left != 0u ? int(ctz(left)) : pick;
    chosen = simd_shuffle(expert, ushort(pick));
    words = weight + size_t(chosen) * WORDS;
    scale = scales + size_t(chosen) * SCALES;
#pragma clang loop unroll(disable)
    while (members != 0u) {
      int member = int(ctz(members));
      members &= members - 1u;
      const device uint4* halves = (const device uint4*)h + member * EACH;
      float part[ROWS];
      for (int r = 0; r < ROWS; ++r) {
        part[r] = 0.0f;
      }
      halves_rolling<FORMAT, K, ROWS, UNROLL>(
          words, scale, rows, members == 0u && left != 0u, halves, (const device float*)(halves + K / 8), lane, block, part);
      float own_share = simd_shuffle(share, ushort(member));
      for (int r = 0; r < ROWS; ++r) {
        part[r] *= own_share;
      }
      // Selected, not times zero: what is no number stays with its sequence.
      int sequence = member / TOPK;
#pragma clang loop unroll(full)
      for (int i = 0; i < S * ROWS; ++i) {
        acc[i] += i / ROWS == sequence ? part[i % ROWS] : 0.0f;
      }
    }
  }
  float result = 0.0f;
#pragma clang loop unroll(full)
  for (int i = 0; i < S * ROWS; ++i) {
    float sum = simd_sum(acc[i]);
    result = int(lane) == i ? sum : result;
  }
  if (writes) {
    y[at] = start + result;
  }
}
