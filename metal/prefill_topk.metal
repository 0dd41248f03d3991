// computes     the TOPK best experts of each token, best first, ties to the lower id, and the softmax over those.
// shapes       logits f32 [L, E]; params i32 [8], [0] = L; picks i32 [L, TOPK]; weights f32 [L, TOPK].
// grid         ceil(L / SIMDGROUPS) threadgroups: a simdgroup a token.
// threadgroup  32 SIMDGROUPS threads, no threadgroup memory.
// bytes        the logits once.
// why          argpartition, take, softmax and their copies are six launches.
// reference    mlx_gptoss/kernels/prefill_routing.py, prefill_topk_twin.
#include "topk.h"

template <int E, int TOPK, int SIMDGROUPS>
[[kernel]] void prefill_topk(
    const device float* logits [[buffer(0)]],
    const device int* params [[buffer(1)]],
    device int* picks [[buffer(2)]],
    device float* weights [[buffer(3)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  int token = int(threadgroup_position_in_grid.x * SIMDGROUPS + simdgroup_index_in_threadgroup);
  if (token < params[0]) {
    int mine = 0;
    float my_weight = 0.0f;
    best_experts<E, TOPK>(logits + token * E, thread_index_in_simdgroup, mine, my_weight);
    if (int(thread_index_in_simdgroup) < TOPK) {
      picks[token * TOPK + int(thread_index_in_simdgroup)] = mine;
      weights[token * TOPK + int(thread_index_in_simdgroup)] = my_weight;
    }
  }
}
