// computes     moe_gate_up of several packed activations: each one's TOPK best experts, and h = swiglu(W t + b).
// shapes       t [S, 8 halves_size(K/32)] f16, packed (packed.h); logits [S, E] f32; weight u32 [E, 2 I, K/8] and scales
//              u8 [E, 2 I, K/32], MXFP4, rows gate, linear, gate, ...; bias [E, 2 I]; params f32 [8], [1] the clamp, [2]
//              alpha; h [S TOPK, 8 halves_size(I/32)] f16, packed; picks i32 and weights f32 [>= S TOPK], best first.
// grid         ceil(2 I / (SIMDGROUPS * PASSES * ROWS)) x S TOPK threadgroups.
// threadgroup  32 SIMDGROUPS threads; 32 UNROLL lanes take a row. ROWS is 1, 2, 4, 8 or 16, PASSES * ROWS even, and
//              S * PASSES * ROWS at most 64.
// bytes        the rows of each distinct expert once; t of those that chose it once for ROWS rows (from cache).
// why          another text of moe_gate_up, for GPUs that multiply two halves at a time (halves.h). Rows stay in registers
//              while they meet all activations that chose their expert, and are replaced by the next meanwhile.
// reference    mlx_gptoss/kernels/moe.py, moe_gate_up_twin.
#include "experts.h"
#include "halves.h"
#include "swiglu.h"
#include "topk.h"

template <typename B, int FORMAT, int K, int I, int E, int TOPK, int ROWS, int SIMDGROUPS, int UNROLL, int PASSES,
          int S>
[[kernel]] void moe_gate_up(
    const device half* t [[buffer(0)]],
    const device float* logits [[buffer(1)]],
    const device uint* weight [[buffer(2)]],
    const device uchar* scales [[buffer(3)]],
    const device B* bias [[buffer(4)]],
    const device float* params [[buffer(5)]],
    device half* h [[buffer(6)]],
    device int* picks [[buffer(7)]],
    device float* weights [[buffer(8)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int N = 2 * I;
  constexpr int COUNT = K / 32;
  constexpr int WORDS = row_words(FORMAT, K);
  constexpr int EACH = halves_size(COUNT);
  constexpr int INNER = halves_size(I / 32);
  constexpr int ALL = PASSES * ROWS;
  constexpr int PAIRS = ALL / 2;
  constexpr int SPAN = 32 / ROWS;
  threadgroup float results[SIMDGROUPS * S * ALL];
  threadgroup int shared[S + 3];
  uint lane = thread_index_in_simdgroup;
  int simdgroup = int(simdgroup_index_in_threadgroup);
  int pick = int(threadgroup_position_in_grid.y);
  int sequence = pick / TOPK;
  float limit = params[1];
  float alpha = params[2];
  uint exponent = inner_exponent(limit, alpha);
  // One simdgroup finds the expert and, a bit each, the sequences that chose it, and which picks those are.
  if (simdgroup == 0) {
    int place = pick % TOPK;
    int found = pick_expert<E>(logits + sequence * E, place, lane);
    uint takers = 0u;
    int taken = 0;
    int target = 0;
#pragma clang loop unroll(full)
    for (int s = 0; s < S; ++s) {
      int rank = rank_of<E>(logits + s * E, found, lane);
      if (rank < TOPK) {
        target = int(lane) == taken ? s * TOPK + rank : target;
        takers |= 1u << s;
        ++taken;
      }
    }
    if (int(lane) < S) {
      shared[lane] = target;
    }
    if (lane == 0) {
      shared[S] = found;
      shared[S + 1] = int(takers);
      shared[S + 2] = taken;
    }
    if (threadgroup_position_in_grid.x == 0) {
      tell<E, TOPK>(logits + sequence * E, lane, place, picks + pick, weights + pick);
      for (int b = int(lane); b < 4 * INNER - I / 2; b += 32) {
        ((device float*)(h + pick * (8 * INNER)))[I / 2 + b] = halves_down(FORMAT, exponent);
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  int expert = shared[S];
  uint members = uint(shared[S + 1]);
  int first = (int(threadgroup_position_in_grid.x) * SIMDGROUPS + simdgroup) * ALL;
  // An earlier sequence takes them all.
  if (ctz(members) < uint(sequence) || first >= N) {
    return;
  }
  size_t base = size_t(expert) * N;
  const device uint* words = weight + (base + first) * WORDS;
  const device uchar* scale = scales + (base + first) * COUNT;
  // Lane l ends pair l % PAIRS of member l / PAIRS. What the end needs is asked for before the weights, or it would be
  // waited for after them.
  int gate = first + int(lane) % PAIRS * 2;
  B gate_bias = bias[base + metal::min(gate, N - 2)];
  B linear_bias = bias[base + metal::min(gate, N - 2) + 1];
  int rows[ROWS];
  rows_from<N, ROWS>(first, rows);
  Block<uchar, ROWS * UNROLL> block;
  load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scale, scale, rows, 0, 0, COUNT, lane, block);
  simdgroup_barrier(mem_flags::mem_none);
  threadgroup float* mine = results + simdgroup * (S * ALL);
#pragma clang loop unroll(disable)
  for (int pass = 0; pass < PASSES && first + pass * ROWS < N; ++pass) {
    int next = first + (pass + 1) * ROWS;
    bool more = pass + 1 < PASSES && next < N;
    rows_from<N, ROWS>(next, rows);
    words += ROWS * WORDS;
    scale += ROWS * COUNT;
    threadgroup float* result = mine + pass * ROWS;
#pragma clang loop unroll(disable)
    for (uint left = members; left != 0u; left &= left - 1u) {
      bool last = (left & (left - 1u)) == 0u;
      const device uint4* halves = (const device uint4*)t + ctz(left) * EACH;
      float acc[ROWS];
      for (int r = 0; r < ROWS; ++r) {
        acc[r] = 0.0f;
      }
      halves_rolling<FORMAT, K, ROWS, UNROLL>(
          words, scale, rows, more && last, halves, (const device float*)(halves + K / 8), lane, block, acc);
      float sum = simd_sums<ROWS>(acc, lane);
      if (int(lane) % SPAN == 0) {
        result[int(lane) / SPAN] = sum;
      }
      result += ALL;
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  int own = int(lane) / PAIRS;
  if (own < shared[S + 2] && gate < N) {
    int at = shared[own];
    const threadgroup float* pair = mine + own * ALL + gate - first;
    float y = swiglu(pair[0] + float(gate_bias), pair[1] + float(linear_bias), limit, alpha);
    h[at * (8 * INNER) + halves_place(I / 32, gate / 64, gate / 2 % 32)] = half(y * halves_up(FORMAT, exponent));
  }
}
