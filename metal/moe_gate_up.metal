// computes     the TOPK best experts of each activation with their softmax, and of each h = swiglu(W t + b).
// shapes       t [S, 8, K/32, 4] (see router) in A; logits [S, E] f32; weight [E, 2 I, K], rows gate, linear, gate, ...
//              (MXFP4: u32 [E, 2 I, K/8] and scales u8 [E, 2 I, K/32]; or bf16); bias [E, 2 I];
//              params f32 [8], [1] the clamp, [2] alpha; h [S, TOPK, 8, I/32, 4] in A;
//              picks i32 and weights f32 [>= S TOPK], written in row order, best first, ties to the lower id.
// grid         ceil(I / (SIMDGROUPS * PASSES * ROWS / 2)) x S TOPK threadgroups.
// threadgroup  32 SIMDGROUPS threads, no threadgroup memory: nothing waits.
// bytes        the rows of each distinct expert once from memory; a simdgroup takes its rows again, from cache, for each
//              further activation that chose the expert; t from cache.
// why          no sort, no gather launch, no separate gate and up; the simdgroup that finds its pick taken by an
//              earlier sequence leaves at once.
// reference    mlx_gptoss/kernels/moe.py, moe_gate_up_twin.
#include "matvec.h"
#include "topk.h"

template <typename A, typename W, typename Q, typename B, int FORMAT, int K, int I, int E, int TOPK, int S, int ROWS,
          int SIMDGROUPS, int UNROLL, int PASSES>
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
  int pick = int(threadgroup_position_in_grid.y);
  int sequence = S == 1 ? 0 : pick / TOPK;
  int expert = pick_expert<E>(logits + sequence * E, pick - sequence * TOPK, lane);
  if (threadgroup_position_in_grid.x == 0 && simdgroup_index_in_threadgroup == 0) {
    int ranked = 0;
    float share = 0.0f;
    best_experts<E, TOPK>(logits + sequence * E, lane, ranked, share);
    if (int(lane) == pick - sequence * TOPK) {
      picks[pick] = ranked;
      weights[pick] = share;
    }
  }
  for (int s = 0; s < sequence; ++s) {
    if (rank_of<E>(logits + s * E, expert, lane) < TOPK) {
      return;
    }
  }
  const device uint* words = (const device uint*)weight;
  float limit = params[1];
  float alpha = params[2];
  for (int group = 0; group < PASSES; ++group) {
    int unit = (int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * PASSES + group) * UNITS;
    if (unit >= I) {
      return;
    }
    size_t rows[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      rows[r] = size_t(expert) * (2 * I) + metal::min(2 * unit + r, 2 * I - 1);
    }
    // What the end needs is asked for before the weights, or it would be waited for after them.
    float own[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      own[r] = float(bias[rows[r]]);
    }
    for (int s = sequence; s < S; ++s) {
      int rank = s == sequence ? pick - sequence * TOPK : rank_of<E>(logits + s * E, expert, lane);
      if (rank < TOPK) {
        int offset = s * (K / 4);
        float acc[ROWS];
        for (int r = 0; r < ROWS; ++r) {
          acc[r] = 0.0f;
        }
        Block<Q, ROWS * UNROLL> block;
        load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scales, scales, rows, 0, 0, COUNT, lane, block);
        matvec<FORMAT, 32, K, ROWS, 1, UNROLL, 8>(
            words, scales, scales, rows, t, &offset, K / 32, 0, COUNT, lane, block, acc);
        for (int r = 0; r < ROWS; ++r) {
          acc[r] = simd_sum(acc[r]) + own[r];
        }
        if (lane == 0) {
          for (int i = 0; i < UNITS; ++i) {
            if (unit + i < I) {
              float gate = metal::min(acc[2 * i], limit);
              float linear = metal::max(metal::min(acc[2 * i + 1], limit), -limit);
              float y = gate / (1.0f + metal::exp(-alpha * gate)) * (linear + 1.0f);
              h[(s * TOPK + rank) * I + 4 * permuted<8>((unit + i) / 4, I / 32) + (unit + i) % 4] = A(y);
            }
          }
        }
      }
    }
  }
}
