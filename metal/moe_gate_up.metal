// computes     the TOPK best experts of each activation with their softmax, and of each h = swiglu(W t + b).
// shapes       t [S, 8, K/32, 4] (see router) in A; logits [S, E] f32; weight [E, 2 I, K], rows gate, linear, gate, ...
//              (MXFP4: u32 [E, 2 I, K/8] and scales u8 [E, 2 I, K/32]; or bf16); bias [E, 2 I];
//              params f32 [8], [1] the clamp, [2] alpha; h [S, TOPK, 8, I/32, 4] in A;
//              picks i32 and weights f32 [>= S TOPK], written in row order, best first, ties to the lower id.
// grid         ceil(I / (SIMDGROUPS * PASSES * ROWS / 2)) x S TOPK threadgroups.
// threadgroup  32 SIMDGROUPS threads; none of them waits for another, or with STAGED (one activation, 32 UNROLL lanes take a
//              row) t goes through threadgroup memory. ROWS is 2, 4, 8 or 16, and PASSES * ROWS at most 32.
// bytes        the rows of each distinct expert once from memory; a simdgroup takes its rows again, from cache, for each
//              further activation that chose the expert; t from cache.
// why          no sort, no gather launch, no separate gate and up; the simdgroup that finds its pick taken by an
//              earlier sequence leaves at once. A simdgroup takes PASSES groups of ROWS rows after each other: the
//              rows of the next are loaded while those of the present are used, where a row is one block, and the
//              end comes once for all, a lane a result.
// reference    mlx_gptoss/kernels/moe.py, moe_gate_up_twin.
#include "rolling.h"
#include "topk.h"

// Rows 2 unit .. of an expert that starts at row `base`, none beyond its end.
template <int I, int ROWS>
METAL_FUNC void gate_up_rows(size_t base, int unit, thread size_t* rows) {
  for (int r = 0; r < ROWS; ++r) {
    rows[r] = base + (I % (ROWS / 2) == 0 ? 2 * unit + r : metal::min(2 * unit + r, 2 * I - 1));
  }
}

// Writes the pick at `place` of a sequence and its weight.
template <int E, int TOPK>
METAL_FUNC void tell(const device float* logits, uint lane, int place, device int* pick, device float* weight) {
  int expert = 0;
  float share = 0.0f;
  best_experts<E, TOPK>(logits, lane, expert, share);
  if (int(lane) == place) {
    *pick = expert;
    *weight = share;
  }
}

template <typename A, typename W, typename Q, typename B, int FORMAT, int K, int I, int E, int TOPK, int S, int ROWS,
          int SIMDGROUPS, int UNROLL, int PASSES, bool STAGED>
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
  constexpr int SPAN = 32 / ROWS;
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int STAGE = STAGED ? K / 4 : 1;
  threadgroup float4 staged[STAGE];
  uint lane = thread_index_in_simdgroup;
  int pick = int(threadgroup_position_in_grid.y);
  int sequence = S == 1 ? 0 : pick / TOPK;
  int place = pick - sequence * TOPK;
  int first = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * (PASSES * UNITS);
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
  if (!STAGED && first >= I) {
    return;
  }
  const device uint* words = (const device uint*)weight;
  size_t base = size_t(expert) * (2 * I);
  // Lane l ends up with row l / SPAN of pass l % SPAN. What the end needs is asked for before the weights, or it would
  // be waited for after them.
  int unit = first + int(lane) % SPAN * UNITS + int(lane) / SPAN / 2;
  bool writes = int(lane) / SPAN % 2 == 0 && int(lane) % SPAN < PASSES && unit < I;
  B own = bias[base + metal::min(2 * unit + int(lane) / SPAN % 2, 2 * I - 1)];
  float limit = params[1];
  float alpha = params[2];
  for (int s = sequence; s < S; ++s) {
    int rank = s == sequence ? place : rank_of<E>(logits + s * E, expert, lane);
    if (rank < TOPK) {
      int offset = s * (K / 4);
      float result = 0.0f;
      size_t rows[ROWS];
      gate_up_rows<I, ROWS>(base, first, rows);
      Block<Q, ROWS * UNROLL> block;
      if (!STAGED || first < I) {
        load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scales, scales, rows, 0, 0, COUNT, lane, block);
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
      for (int pass = 0; pass < PASSES && first + pass * UNITS < I; ++pass) {
        int next = first + (pass + 1) * UNITS;
        bool more = pass + 1 < PASSES && next < I;
        float acc[ROWS];
        for (int r = 0; r < ROWS; ++r) {
          acc[r] = 0.0f;
        }
        gate_up_rows<I, ROWS>(base, next, rows);
        if (STAGED) {
          const threadgroup float4* kept = staged;
          matvec_rolling<FORMAT, 32, K, ROWS, UNROLL, 8>(words, scales, rows, more, kept, 0, K / 32, lane, block, acc);
        } else if (UNROLL * 32 >= COUNT) {
          matvec_rolling<FORMAT, 32, K, ROWS, UNROLL, 8>(words, scales, rows, more, t, offset, K / 32, lane, block, acc);
        } else {
          size_t present[ROWS];
          gate_up_rows<I, ROWS>(base, first + pass * UNITS, present);
          matvec<FORMAT, 32, K, ROWS, 1, UNROLL, 8>(
              words, scales, scales, present, t, &offset, K / 32, 0, COUNT, lane, block, acc);
          if (more) {
            load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scales, scales, rows, 0, 0, COUNT, lane, block);
          }
        }
        float sum = simd_sums<ROWS>(acc, lane);
        result = int(lane) % SPAN == pass ? sum : result;
      }
      result += float(own);
      float gate = metal::min(result, limit);
      float linear = metal::max(metal::min(simd_shuffle_xor(result, ushort(SPAN)), limit), -limit);
      float y = gate / (1.0f + metal::exp(-alpha * gate)) * (linear + 1.0f);
      if (writes) {
        h[(s * TOPK + rank) * I + 4 * permuted<8>(unit / 4, I / 32) + unit % 4] = A(y);
      }
    }
  }
}
