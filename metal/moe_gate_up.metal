// computes     the TOPK best experts of each activation with their softmax, and of each h = swiglu(W t + b).
// shapes       t [S, 8, K/32, 4] (see router) in A; logits [S, E] f32; weight [E, 2 I, K], rows gate, linear, gate, ...
//              (MXFP4: u32 [E, 2 I, K/8] and scales u8 [E, 2 I, K/32]; or bf16); bias [E, 2 I];
//              params f32 [8], [1] the clamp, [2] alpha; h [S, TOPK, 8, I/32, 4] in A;
//              picks i32 and weights f32 [>= S TOPK], written in row order, best first, ties to the lower id.
// grid         ceil(I / (SIMDGROUPS * ROWS / 2)) x S TOPK threadgroups.
// threadgroup  32 SIMDGROUPS threads, no threadgroup memory: nothing waits.
// bytes        the rows of each distinct expert once, for all the activations that chose it; t from cache.
// why          no sort, no gather launch, no separate gate and up; the simdgroup that finds its pick taken by an
//              earlier sequence leaves at once.
// reference    mlx_gptoss/kernels/moe.py, moe_gate_up_twin.
#include "matvec.h"
#include "topk.h"

template <typename A, typename W, typename Q, typename B, int FORMAT, int K, int I, int E, int TOPK, int S, int ROWS,
          int SIMDGROUPS, int UNROLL>
[[kernel]] void moe_gate_up(
    const device A* t [[buffer(0)]],
    const device float* logits [[buffer(1)]],
    const device W* weight [[buffer(2)]],
    const device Q* scales [[buffer(3)]],
    const device B* bias [[buffer(4)]],
    const device float* params [[buffer(5)]],
    device A* h [[buffer(6)]],
    device int* picks [[buffer(7)]],
    device float* weights [[buffer(8)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int UNITS = ROWS / 2;
  constexpr int COUNT = K / chunk_values(FORMAT);
  uint lane = thread_index_in_simdgroup;
  int sequence = int(threadgroup_position_in_grid.y) / TOPK;
  int rank = int(threadgroup_position_in_grid.y) % TOPK;
  float weight_of_pick = 0.0f;
  int expert = pick_expert<E, TOPK>(logits + sequence * E, rank, lane, weight_of_pick);
  if (threadgroup_position_in_grid.x == 0 && simdgroup_index_in_threadgroup == 0 && lane == 0) {
    picks[threadgroup_position_in_grid.y] = expert;
    weights[threadgroup_position_in_grid.y] = weight_of_pick;
  }
  int ranks[S];
  uint members = 0;
  bool owner = true;
  for (int s = 0; s < S; ++s) {
    ranks[s] = s == sequence ? rank : rank_of<E>(logits + s * E, expert, lane);
    if (ranks[s] < TOPK) {
      members |= 1u << s;
      owner = owner && s >= sequence;
    }
  }
  int unit = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * UNITS;
  if (owner && unit < I) {
    size_t rows[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      rows[r] = size_t(expert) * (2 * I) + metal::min(2 * unit + r, 2 * I - 1);
    }
    int offsets[S];
    float acc[S * ROWS];
    for (int s = 0; s < S; ++s) {
      offsets[s] = s * (K / 4);
      for (int r = 0; r < ROWS; ++r) {
        acc[s * ROWS + r] = 0.0f;
      }
    }
    matvec<FORMAT, 32, K, ROWS, S, COUNT, UNROLL, 8>(
        (const device uint*)weight, scales, scales, rows, t, offsets, K / 32, members, 0, COUNT, lane, acc);
    for (int s = 0; s < S; ++s) {
      if ((members >> s) & 1u) {
        for (int r = 0; r < ROWS; ++r) {
          acc[s * ROWS + r] = simd_sum(acc[s * ROWS + r]) + float(bias[rows[r]]);
        }
        if (lane == 0) {
          for (int i = 0; i < UNITS; ++i) {
            if (unit + i < I) {
              float gate = metal::min(acc[s * ROWS + 2 * i], params[1]);
              float linear = metal::max(metal::min(acc[s * ROWS + 2 * i + 1], params[1]), -params[1]);
              float y = gate / (1.0f + metal::exp(-params[2] * gate)) * (linear + 1.0f);
              int at = (s * TOPK + ranks[s]) * I;
              h[at + 4 * permuted<8>((unit + i) / 4, I / 32) + (unit + i) % 4] = A(y);
            }
          }
        }
      }
    }
  }
}
