// computes     y = x + sum over each activation's experts of weight * (W h + b): down projection, mixing, residual.
// shapes       h [S, TOPK, 8, K/32, 4] in A; picks i32 and weights f32 [>= S TOPK] (see moe_gate_up); weight [E, N, K]
//              (MXFP4: u32 [E, N, K/8] and scales u8 [E, N, K/32]; or bf16); bias [E, N]; x, y [S, N] f32.
// grid         ceil(N / (GROUPS * ROWS)) threadgroups.
// threadgroup  32 SIMDGROUPS threads, SIMDGROUPS = GROUPS * SHARE: GROUPS groups of rows, and SHARE simdgroups that
//              share out the experts of each. ROWS is 1, 2, 4, 8 or 16; S * ROWS and, if S > 1, S * TOPK are at most 32.
//              With STAGED (one activation, SHARE at most TOPK, 32 UNROLL lanes take a row) h goes through threadgroup
//              memory.
// bytes        the rows of each distinct expert once from memory, again from cache for each further activation that chose
//              it; h from cache.
// why          the experts meet in a simdgroup's registers and in threadgroup memory, so their sum needs no launch, no
//              atomics and no array; the next expert's rows are loaded while the present one's are used.
// reference    mlx_gptoss/kernels/moe.py, moe_down_twin.
#include "experts.h"
#include "members.h"
#include "rolling.h"

template <typename B, int FORMAT, int K, int N, int TOPK, int ROWS, int SIMDGROUPS, int UNROLL, typename A, typename W,
          typename Q, int S, int SHARE, bool STAGED>
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
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int WORDS = N * row_words(FORMAT, K);
  constexpr int SCALES = N * (K / 32);
  constexpr int STAGE = STAGED ? TOPK * K / 4 : 1;
  threadgroup float sums[SIMDGROUPS * S * ROWS];
  threadgroup float4 staged[STAGE];
  uint lane = thread_index_in_simdgroup;
  int simdgroup = int(simdgroup_index_in_threadgroup);
  int base = int(threadgroup_position_in_grid.x) * GROUPS * ROWS;
  int first = base + simdgroup / SHARE * ROWS;
  threadgroup float* mine = sums + simdgroup * (S * ROWS);
  // What the end needs is asked for before the weights, or it would be waited for after them.
  int thread_index = simdgroup * 32 + int(lane);
  int out_row = base + thread_index / (S * ROWS) * ROWS + thread_index % ROWS;
  int out_at = thread_index % (S * ROWS) / ROWS * N + out_row;
  bool writes = thread_index < GROUPS * S * ROWS && out_row < N;
  float start = writes ? x[out_at] : 0.0f;
  // The rows first .. of an expert, none beyond its end.
  int rows[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    rows[r] = N % ROWS == 0 ? metal::min(first, N - ROWS) + r : metal::min(first + r, N - 1);
  }
  const device uint* all = (const device uint*)weight;
  float4 values[(STAGE + THREADS - 1) / THREADS];
  if (STAGED) {
    ask_activations<STAGE, THREADS>(h, thread_index, values);
  }
  if (S == 1) {
    // The experts add up in the lanes, and the lanes once at the end. Lane l brings the bias of row l / SPAN and pick
    // l % SPAN of this simdgroup's.
    constexpr int SPAN = 32 / ROWS;
    constexpr int ROUNDS = (TOPK + SHARE - 1) / SHARE;
    int pick = simdgroup % SHARE;
    int held = pick + int(lane) % SPAN * SHARE;
    B own = B(0.0f);
    float own_share = 0.0f;
    float acc[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      acc[r] = 0.0f;
    }
    if (pick < TOPK) {
      Block<Q, ROWS * UNROLL> block;
      const device uint* words = all + size_t(picks[pick]) * WORDS;
      const device Q* scale = scales + size_t(picks[pick]) * SCALES;
      load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scale, scale, rows, 0, 0, COUNT, lane, block);
      simdgroup_barrier(mem_flags::mem_none);
      if (STAGED) {
        keep_activations<STAGE, THREADS>(values, thread_index, staged);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      if (held < TOPK) {
        own = bias[size_t(picks[held]) * N + metal::min(first + int(lane) / SPAN, N - 1)];
        own_share = weights[held];
      }
#pragma clang loop unroll_count(1)
      for (int round = 0; round < ROUNDS && pick < TOPK; ++round) {
        bool more = round + 1 < ROUNDS && pick + SHARE < TOPK;
        float share = weights[pick];
        float part[ROWS];
        for (int r = 0; r < ROWS; ++r) {
          part[r] = 0.0f;
        }
        if (!STAGED && UNROLL * 32 < COUNT) {
          int offset = pick * (K / 4);
          matvec<FORMAT, 32, K, ROWS, 1, UNROLL, 8>(
              words, scale, scale, rows, h, &offset, K / 32, 0, COUNT, lane, block, part);
        }
        int next = picks[metal::min(pick + SHARE, TOPK - 1)];
        words = all + size_t(next) * WORDS;
        scale = scales + size_t(next) * SCALES;
        if (STAGED) {
          const threadgroup float4* kept = staged;
          matvec_rolling<FORMAT, 32, K, ROWS, UNROLL, 8>(
              words, scale, rows, more, kept, pick * (K / 4), K / 32, lane, block, part);
        } else if (UNROLL * 32 >= COUNT) {
          matvec_rolling<FORMAT, 32, K, ROWS, UNROLL, 8>(
              words, scale, rows, more, h, pick * (K / 4), K / 32, lane, block, part);
        } else if (more) {
          load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scale, scale, rows, 0, 0, COUNT, lane, block);
        }
        for (int r = 0; r < ROWS; ++r) {
          acc[r] = metal::fma(share, part[r], acc[r]);
        }
        pick += SHARE;
      }
    }
    for (int r = 0; r < ROWS; ++r) {
      acc[r] += int(lane) / SPAN == r ? own_share * float(own) : 0.0f;
    }
    float sum = simd_sums<ROWS>(acc, lane);
    if (int(lane) % SPAN == 0) {
      mine[int(lane) / SPAN] = sum;
    }
  } else {
    if (int(lane) < S * ROWS) {
      mine[lane] = 0.0f;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    // Lane l has pick l. A simdgroup takes every SHARE-th of the distinct experts.
    constexpr int PICKS = S == 1 ? 1 : S * TOPK;  // compiled for one sequence, too
    bool picked = int(lane) < PICKS;
    int expert = picked ? picks[lane] : -1;
    float own_share = picked ? weights[lane] : 0.0f;
    uint same = 0u;
    uint left = distinct_picks<PICKS>(expert, lane, same);
    for (int i = 0; i < simdgroup % SHARE; ++i) {
      left &= left - 1u;
    }
    while (left != 0u) {
      int pick = int(ctz(left));
      int chosen = simd_shuffle(expert, ushort(pick));
      uint members = simd_shuffle(same, ushort(pick));
      for (int i = 0; i < SHARE; ++i) {
        left &= left - 1u;
      }
      const device uint* words = all + size_t(chosen) * WORDS;
      const device Q* scale = scales + size_t(chosen) * SCALES;
      float own[ROWS];
      for (int r = 0; r < ROWS; ++r) {
        own[r] = float(bias[size_t(chosen) * N + rows[r]]);
      }
      for (; members != 0u; members &= members - 1u) {
        int member = int(ctz(members));
        int offset = member * (K / 4);
        float share = simd_shuffle(own_share, ushort(member));
        float acc[ROWS];
        for (int r = 0; r < ROWS; ++r) {
          acc[r] = 0.0f;
        }
        Block<Q, ROWS * UNROLL> block;
        load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scale, scale, rows, 0, 0, COUNT, lane, block);
        matvec<FORMAT, 32, K, ROWS, 1, UNROLL, 8>(
            words, scale, scale, rows, h, &offset, K / 32, 0, COUNT, lane, block, acc);
        for (int r = 0; r < ROWS; ++r) {
          acc[r] = simd_sum(acc[r]);
        }
        if (lane == 0) {
          for (int r = 0; r < ROWS; ++r) {
            mine[member / TOPK * ROWS + r] += share * (acc[r] + own[r]);
          }
        }
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (writes) {
    for (int g = 0; g < SHARE; ++g) {
      start += sums[(thread_index / (S * ROWS) * SHARE + g) * (S * ROWS) + thread_index % (S * ROWS)];
    }
    y[out_at] = start;
  }
}
