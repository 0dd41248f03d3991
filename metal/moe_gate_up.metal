// computes     the TOPK best experts of each activation with their softmax, and of each h = swiglu(W t + b).
// shapes       t [S, 8, K/32, 4] (see router) in A; logits [S, E] f32; weight [E, 2 I, K], rows gate, linear, gate, ...
//              (MXFP4: u32 [E, 2 I, K/8] and scales u8 [E, 2 I, K/32]; or bf16); bias [E, 2 I];
//              params f32 [8], [1] the clamp, [2] alpha; h [S, TOPK, 8, I/32, 4] in A;
//              picks i32 and weights f32 [>= S TOPK], written in row order, best first, ties to the lower id.
// grid         ceil(2 I / (SIMDGROUPS * PASSES * ROWS)) x S TOPK threadgroups.
// threadgroup  32 SIMDGROUPS threads; none of them waits for another, or with STAGED (one activation, 32 UNROLL lanes take a
//              row) t goes through threadgroup memory. ROWS is 1, 2, 4, 8 or 16, and PASSES * ROWS even and at most 32.
// bytes        the rows of each distinct expert once from memory; a simdgroup takes its rows again, from cache, for each
//              further activation that chose the expert; t from cache.
// why          no sort, no gather launch, no separate gate and up; the simdgroup that finds its pick taken by an
//              earlier sequence leaves at once. A simdgroup takes PASSES groups of ROWS rows after each other: the
//              rows of the next are loaded while those of the present are used, where a row is one block, and the
//              end comes once for all, a lane a result.
// reference    mlx_gptoss/kernels/moe.py, moe_gate_up_twin.
#include "experts.h"
#include "rolling.h"
#include "swiglu.h"
#include "topk.h"

template <typename B, int FORMAT, int K, int I, int E, int TOPK, int ROWS, int SIMDGROUPS, int UNROLL, int PASSES,
          typename A, typename W, typename Q, int S, bool STAGED>
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
  constexpr int N = 2 * I;
  constexpr int COUNT = K / chunk_values(FORMAT);
  constexpr int WORDS = row_words(FORMAT, K);
  constexpr int SPAN = 32 / ROWS;
  constexpr int PAIRED = ROWS == 1 ? 1 : SPAN;
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int STAGE = STAGED ? K / 4 : 1;
  threadgroup float4 staged[STAGE];
  uint lane = thread_index_in_simdgroup;
  int pick = int(threadgroup_position_in_grid.y);
  int sequence = S == 1 ? 0 : pick / TOPK;
  int place = pick - sequence * TOPK;
  int first = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * (PASSES * ROWS);
  bool tells = threadgroup_position_in_grid.x == 0 && simdgroup_index_in_threadgroup == 0;
  int thread_index = int(simdgroup_index_in_threadgroup) * 32 + int(lane);
  float4 values[(STAGE + THREADS - 1) / THREADS];
  if (STAGED) {
    ask_activations<STAGE, THREADS>(t, thread_index, values);
  }
  int expert = pick_expert<E>(logits + sequence * E, place, lane);
  if (S > 1) {
    if (tells) {
      tell<E, TOPK>(logits + sequence * E, lane, place, picks + pick, weights + pick);
    }
    for (int s = 0; s < sequence; ++s) {
      if (rank_of<E>(logits + s * E, expert, lane) < TOPK) {
        return;
      }
    }
  }
  if (!STAGED && first >= N) {
    return;
  }
  size_t base = size_t(expert) * N;
  const device uint* from = (const device uint*)weight + (base + first) * WORDS;
  const device Q* from_scales = scales + (base + first) * (K / 32);
  // Lane l ends up with row l / SPAN of pass l % SPAN, and the lane of the other row of its pair is PAIRED from it. What
  // the end needs is asked for before the weights, or it would be waited for after them.
  int row = first + int(lane) % SPAN * ROWS + int(lane) / SPAN;
  bool writes = row % 2 == 0 && int(lane) % SPAN < PASSES && row < N;
  B own = bias[base + metal::min(row, N - 1)];
  float limit = params[1];
  float alpha = params[2];
  for (int s = sequence; s < S; ++s) {
    int rank = s == sequence ? place : rank_of<E>(logits + s * E, expert, lane);
    if (rank < TOPK) {
      int offset = s * (K / 4);
      float result = 0.0f;
      const device uint* words = from;
      const device Q* scale = from_scales;
      int rows[ROWS];
      rows_from<N, ROWS>(first, rows);
      Block<Q, ROWS * UNROLL> block;
      if (!STAGED || first < N) {
        load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scale, scale, rows, 0, 0, COUNT, lane, block);
      }
      simdgroup_barrier(mem_flags::mem_none);
      if (STAGED) {
        keep_activations<STAGE, THREADS>(values, thread_index, staged);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      // While the first weights are on their way.
      if (S == 1 && tells) {
        tell<E, TOPK>(logits, lane, place, picks + pick, weights + pick);
      }
#pragma clang loop unroll(disable)
      for (int pass = 0; pass < PASSES && first + pass * ROWS < N; ++pass) {
        int next = first + (pass + 1) * ROWS;
        bool more = pass + 1 < PASSES && next < N;
        float acc[ROWS];
        for (int r = 0; r < ROWS; ++r) {
          acc[r] = 0.0f;
        }
        if (!STAGED && UNROLL * 32 < COUNT) {
          matvec<FORMAT, 32, K, ROWS, 1, UNROLL, 8>(
              words, scale, scale, rows, t, &offset, K / 32, 0, COUNT, lane, block, acc);
        }
        rows_from<N, ROWS>(next, rows);
        words += ROWS * WORDS;
        scale += ROWS * (K / 32);
        if (STAGED) {
          const threadgroup float4* kept = staged;
          matvec_rolling<FORMAT, 32, K, ROWS, UNROLL, 8>(words, scale, rows, more, kept, 0, K / 32, lane, block, acc);
        } else if (UNROLL * 32 >= COUNT) {
          matvec_rolling<FORMAT, 32, K, ROWS, UNROLL, 8>(words, scale, rows, more, t, offset, K / 32, lane, block, acc);
        } else if (more) {
          load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scale, scale, rows, 0, 0, COUNT, lane, block);
        }
        float sum = simd_sums<ROWS>(acc, lane);
        result = int(lane) % SPAN == pass ? sum : result;
      }
      result += float(own);
      float y = swiglu(result, simd_shuffle_xor(result, ushort(PAIRED)), limit, alpha);
      if (writes) {
        int unit = row / 2;
        h[(s * TOPK + rank) * I + 4 * permuted<8>(unit / 4, I / 32) + unit % 4] = A(y);
      }
    }
  }
}
