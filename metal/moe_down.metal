// computes     y = x + sum over each activation's experts of weight * (W h + b): down projection, mixing, residual.
// shapes       h [S, TOPK, 8, K/32, 4] in A; picks i32 and weights f32 [>= S TOPK] (see moe_gate_up); weight [E, N, K]
//              (MXFP4: u32 [E, N, K/8] and scales u8 [E, N, K/32]; or bf16); bias [E, N]; x, y [S, N] f32.
// grid         ceil(N / (GROUPS * ROWS)) threadgroups.
// threadgroup  32 SIMDGROUPS threads, SIMDGROUPS = GROUPS * SHARE: GROUPS groups of rows, and SHARE simdgroups that
//              share out the picks of each.
// bytes        the rows of each distinct expert once, for all the activations that chose it; h from cache.
// why          the experts meet in threadgroup memory, so their sum needs no launch, no atomics and no array.
// reference    mlx_gptoss/kernels/moe.py, moe_down_twin.
#include "matvec.h"

template <typename A, typename W, typename Q, typename B, int FORMAT, int K, int N, int TOPK, int S, int ROWS,
          int SIMDGROUPS, int SHARE, int UNROLL>
[[kernel]] void moe_down(
    const device A* h [[buffer(0)]],
    const device int* picks [[buffer(1)]],
    const device float* weights [[buffer(2)]],
    const device W* weight [[buffer(3)]],
    const device Q* scales [[buffer(4)]],
    const device B* bias [[buffer(5)]],
    const device float* x [[buffer(6)]],
    device float* y [[buffer(7)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int GROUPS = SIMDGROUPS / SHARE;
  constexpr int COUNT = K / chunk_values(FORMAT);
  threadgroup float sums[SIMDGROUPS * S * ROWS];
  uint lane = thread_index_in_simdgroup;
  int simdgroup = int(simdgroup_index_in_threadgroup);
  int base = int(threadgroup_position_in_grid.x) * GROUPS * ROWS;
  int first = base + simdgroup / SHARE * ROWS;
  float total[S * ROWS];
  for (int i = 0; i < S * ROWS; ++i) {
    total[i] = 0.0f;
  }
  for (int pick = simdgroup % SHARE; pick < S * TOPK; pick += SHARE) {
    int expert = picks[pick];
    int offsets[S];
    float shares[S];
    uint members = 0;
    bool owner = true;
    for (int s = 0; s < S; ++s) {
      offsets[s] = 0;
      shares[s] = 0.0f;
      for (int i = 0; i < TOPK; ++i) {
        if (picks[s * TOPK + i] == expert) {
          offsets[s] = (s * TOPK + i) * (K / 4);
          shares[s] = weights[s * TOPK + i];
          members |= 1u << s;
          owner = owner && s >= pick / TOPK;
        }
      }
    }
    if (owner) {
      size_t rows[ROWS];
      for (int r = 0; r < ROWS; ++r) {
        rows[r] = size_t(expert) * N + metal::min(first + r, N - 1);
      }
      float acc[S * ROWS];
      for (int i = 0; i < S * ROWS; ++i) {
        acc[i] = 0.0f;
      }
      matvec<FORMAT, 32, K, ROWS, S, COUNT, UNROLL, 8>(
          (const device uint*)weight, scales, scales, rows, h, offsets, K / 32, members, 0, COUNT, lane, acc);
      for (int r = 0; r < ROWS; ++r) {
        float own = lane == 0 ? float(bias[rows[r]]) : 0.0f;
        for (int s = 0; s < S; ++s) {
          total[s * ROWS + r] += shares[s] * (acc[s * ROWS + r] + own);
        }
      }
    }
  }
  for (int i = 0; i < S * ROWS; ++i) {
    float sum = simd_sum(total[i]);
    if (lane == 0) {
      sums[simdgroup * (S * ROWS) + i] = sum;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = simdgroup * 32 + int(lane); i < GROUPS * S * ROWS; i += 32 * SIMDGROUPS) {
    int group = i / (S * ROWS);
    int s = i % (S * ROWS) / ROWS;
    int row = base + group * ROWS + i % ROWS;
    if (row < N) {
      float sum = 0.0f;
      for (int g = 0; g < SHARE; ++g) {
        sum += sums[(group * SHARE + g) * (S * ROWS) + i % (S * ROWS)];
      }
      y[s * N + row] = x[s * N + row] + sum;
    }
  }
}
