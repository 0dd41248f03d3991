// computes     moe_down of packed activations: y = x + sum over the experts of weight * (W h + b), of one sequence.
// shapes       h [TOPK, 8 halves_size(K/32)] f16, packed (packed.h); picks i32 and weights f32 [>= TOPK] (see moe_gate_up);
//              weight u32 [E, N, K/8] and scales u8 [E, N, K/32], MXFP4; bias [E, N]; x, y [1, N] f32.
// grid         ceil(N / (SIMDGROUPS * ROWS)) threadgroups.
// threadgroup  32 SIMDGROUPS threads; h in threadgroup memory; 32 UNROLL lanes take a row. ROWS is 1, 2, 4, 8 or 16, and
//              TOPK * ROWS at most 32.
// bytes        the rows of each expert once; h once a threadgroup (from cache).
// why          another text of moe_down, for GPUs that multiply two halves at a time (halves.h): the products of a block
//              take half the steps, and h comes in half the bytes. The experts meet in a simdgroup's registers; the next
//              one's rows are loaded while the present one's are used.
// reference    mlx_gptoss/kernels/moe.py, moe_down_twin.
#include "experts.h"
#include "halves.h"

template <typename B, int FORMAT, int K, int N, int TOPK, int ROWS, int SIMDGROUPS, int UNROLL>
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
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int EACH = halves_size(COUNT);
  constexpr int STAGE = TOPK * EACH;
  constexpr int SPAN = 32 / ROWS;
  threadgroup float4 staged[STAGE];
  uint lane = thread_index_in_simdgroup;
  int simdgroup = int(simdgroup_index_in_threadgroup);
  int thread_index = simdgroup * 32 + int(lane);
  int first = (int(threadgroup_position_in_grid.x) * SIMDGROUPS + simdgroup) * ROWS;
  // What the end needs is asked for before the weights, or it would be waited for after them. The sum of row l / SPAN ends
  // up in lane l, which brings the bias of that row and pick l % SPAN.
  int row = first + int(lane) / SPAN;
  bool writes = int(lane) % SPAN == 0 && row < N;
  float start = writes ? x[row] : 0.0f;
  float4 values[(STAGE + THREADS - 1) / THREADS];
  ask_activations<STAGE, THREADS>((const device float*)h, thread_index, values);
  int rows[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    rows[r] = metal::min(first + r, N - 1);
  }
  Block<uchar, ROWS * UNROLL> block;
  const device uint* words = weight + size_t(picks[0]) * WORDS;
  const device uchar* scale = scales + size_t(picks[0]) * SCALES;
  load_block<FORMAT, 32, K, ROWS, UNROLL>(words, scale, scale, rows, 0, 0, COUNT, lane, block);
  simdgroup_barrier(mem_flags::mem_none);
  keep_activations<STAGE, THREADS>(values, thread_index, staged);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  int held = int(lane) % SPAN;
  B own = B(0.0f);
  float own_share = 0.0f;
  if (held < TOPK) {
    own = bias[size_t(picks[held]) * N + metal::min(row, N - 1)];
    own_share = weights[held];
  }
  float acc[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    acc[r] = 0.0f;
  }
#pragma clang loop unroll(disable)
  for (int pick = 0; pick < TOPK; ++pick) {
    float share = weights[pick];
    int next = picks[metal::min(pick + 1, TOPK - 1)];
    words = weight + size_t(next) * WORDS;
    scale = scales + size_t(next) * SCALES;
    float part[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      part[r] = 0.0f;
    }
    const threadgroup uint4* halves = (const threadgroup uint4*)staged + pick * EACH;
    halves_rolling<FORMAT, K, ROWS, UNROLL>(
        words, scale, rows, pick + 1 < TOPK, halves, (const threadgroup float*)(halves + K / 8), lane, block, part);
    for (int r = 0; r < ROWS; ++r) {
      acc[r] = metal::fma(share, part[r], acc[r]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    acc[r] += int(lane) / SPAN == r ? own_share * float(own) : 0.0f;
  }
  float sum = simd_sums<ROWS>(acc, lane);
  if (writes) {
    y[row] = start + sum;
  }
}
