// computes     moe_gate_up of one packed activation: the TOPK best experts with their softmax, and h = swiglu(W t + b).
// shapes       t [1, 8 halves_size(K/32)] f16, packed (packed.h); logits [1, E] f32; weight u32 [E, 2 I, K/8] and scales
//              u8 [E, 2 I, K/32], MXFP4, rows gate, linear, gate, ...; bias [E, 2 I]; params f32 [8], [1] the clamp, [2]
//              alpha; h [TOPK, 8 halves_size(I/32)] f16, packed; picks i32 and weights f32 [>= TOPK], best first.
// grid         ceil(2 I / (SIMDGROUPS * PASSES * ROWS)) x TOPK threadgroups.
// threadgroup  32 SIMDGROUPS threads; t in threadgroup memory; 32 UNROLL lanes take a row. ROWS is 1, 2, 4, 8 or 16, and
//              PASSES * ROWS even and at most 32.
// bytes        the rows of each expert once; t once a threadgroup (from cache).
// why          another text of moe_gate_up, for GPUs that multiply two halves at a time (halves.h): the products of a
//              block take half the steps, and t comes in half the bytes.
// reference    mlx_gptoss/kernels/moe.py, moe_gate_up_twin.
#include "experts.h"
#include "halves.h"
#include "swiglu.h"
#include "topk.h"

template <typename B, int FORMAT, int K, int I, int E, int TOPK, int ROWS, int SIMDGROUPS, int UNROLL, int PASSES>
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
  constexpr int SPAN = 32 / ROWS;
  constexpr int PAIRED = ROWS == 1 ? 1 : SPAN;
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int STAGE = halves_size(COUNT);
  constexpr int INNER = halves_size(I / 32);
  threadgroup float4 staged[STAGE];
  uint lane = thread_index_in_simdgroup;
  int place = int(threadgroup_position_in_grid.y);
  int first = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup) * (PASSES * ROWS);
  bool tells = threadgroup_position_in_grid.x == 0 && simdgroup_index_in_threadgroup == 0;
  int thread_index = int(simdgroup_index_in_threadgroup) * 32 + int(lane);
  float4 values[(STAGE + THREADS - 1) / THREADS];
  ask_activations<STAGE, THREADS>((const device float*)t, thread_index, values);
  int expert = pick_expert<E>(logits, place, lane);
  size_t base = size_t(expert) * N;
  const device uint* words = weight + (base + first) * WORDS;
  const device uchar* scale = scales + (base + first) * COUNT;
  // Lane l ends up with row l / SPAN of pass l % SPAN, and the lane of the other row of its pair is PAIRED from it. What
  // the end needs is asked for before the weights, or it would be waited for after them.
  int row = first + int(lane) % SPAN * ROWS + int(lane) / SPAN;
  bool writes = row % 2 == 0 && int(lane) % SPAN < PASSES && row < N;
  B own = bias[base + metal::min(row, N - 1)];
  float limit = params[1];
  float alpha = params[2];
  int rows[ROWS];
  rows_from<N, ROWS>(first, rows);
  Block<uchar, ROWS * UNROLL> block;
  if (first < N) {
    load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scale, scale, rows, 0, 0, COUNT, lane, block);
  }
  simdgroup_barrier(mem_flags::mem_none);
  keep_activations<STAGE, THREADS>(values, thread_index, staged);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  // While the first weights are on their way.
  if (tells) {
    tell<E, TOPK>(logits, lane, place, picks + place, weights + place);
  }
  const threadgroup uint4* halves = (const threadgroup uint4*)staged;
  const threadgroup float* behind = (const threadgroup float*)(halves + K / 8);
  float result = 0.0f;
#pragma clang loop unroll(disable)
  for (int pass = 0; pass < PASSES && first + pass * ROWS < N; ++pass) {
    int next = first + (pass + 1) * ROWS;
    float acc[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      acc[r] = 0.0f;
    }
    rows_from<N, ROWS>(next, rows);
    words += ROWS * WORDS;
    scale += ROWS * COUNT;
    halves_rolling<FORMAT, K, ROWS, UNROLL>(
        words, scale, rows, pass + 1 < PASSES && next < N, halves, behind, lane, block, acc);
    float sum = simd_sums<ROWS>(acc, lane);
    result = int(lane) % SPAN == pass ? sum : result;
  }
  result += float(own);
  float y = swiglu(result, simd_shuffle_xor(result, ushort(PAIRED)), limit, alpha);
  uint exponent = inner_exponent(limit, alpha);
  device half* out = h + place * (8 * INNER);
  int unit = row / 2;
  if (writes) {
    out[halves_place(I / 32, unit / 32, unit % 32)] = half(y * halves_up(FORMAT, exponent));
  }
  for (int b = int(lane); tells && b < 4 * INNER - I / 2; b += 32) {
    ((device float*)out)[I / 2 + b] = halves_down(FORMAT, exponent);
  }
}
