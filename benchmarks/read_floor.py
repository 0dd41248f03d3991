"""What a dependent launch that only reads takes on this GPU, by the bytes it reads: the floor of the decode kernels.

The kernel goes through the package's back end, like the kernels that are measured against it, and comes in a few
shapes, of which the fastest counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx

from benchmarks.chain import copies_beyond_cache
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.source import parse_kernel

NAME = "read_floor"
SHAPES = ((1, 1024, 8), (2, 512, 8), (4, 256, 8), (4, 512, 4))
"""Threadgroups for each of CORES, threads of one, 16-byte reads in flight a lane."""
CORES = 132  # an H100's; a Mac has fewer, and takes the threadgroups in turns
TEXT = """
#include <metal_stdlib>
using namespace metal;

template <int COUNT, int THREADS, int GROUPS, int UNROLL, bool ONCE>
[[kernel]] void read_floor(
    const device uint* data [[buffer(0)]],
    const device float* x [[buffer(1)]],
    device float* y [[buffer(2)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint thread_index_in_threadgroup [[thread_index_in_threadgroup]]) {
  constexpr int STEP = THREADS * GROUPS;
  int index = int(threadgroup_position_in_grid.x) * THREADS + int(thread_index_in_threadgroup);
  const device uint4* from = (const device uint4*)data;
  uint all = as_type<uint>(x[0]);
#pragma clang loop unroll(disable)
  for (int first = index; first < COUNT; first += STEP * UNROLL) {
    uint4 q[UNROLL];
#pragma clang loop unroll(full)
    for (int u = 0; u < UNROLL; ++u) {
      const device uint4* at = from + metal::min(first + u * STEP, COUNT - 1);
#ifdef DEVICE_READ_ONCE
      q[u] = ONCE ? device_read_once(at) : *at;
#else
      q[u] = *at;
#endif
    }
#pragma clang loop unroll(full)
    for (int u = 0; u < UNROLL; ++u) {
      all ^= (q[u].x ^ q[u].y) ^ (q[u].z ^ q[u].w);
    }
  }
  // A compiler cannot know that hardly any lane ends with these bits, so it keeps the reads; eight floats are written.
  if (all == 0x7fc12345u || index < 8) {
    y[index & 7] = all == 0x7fc12345u ? 1.0f : 0.0f;
  }
}
"""


def read_floor_us(
    megabytes: float, backend: Backend, timed: Callable[[Callable[[int, mx.array], mx.array], mx.array], float]
) -> float:
    """Microseconds to read `megabytes` (10^6 bytes), rotating through arrays that no cache holds; `timed(step, start)`
    times a chain of `step(i, x) -> x`."""
    count = int(megabytes * 1e6) // 16
    copies = copies_beyond_cache(16 * count)
    arrays = [mx.random.randint(0, 2**31 - 1, (4 * count,)).astype(mx.uint32) for _ in range(copies)]
    x = mx.zeros((8,))
    mx.eval(arrays, x)
    kernel = parse_kernel(NAME, {f"{NAME}.metal": TEXT})

    def call(groups: int, threads: int, unroll: int, once: bool, i: int, x: mx.array) -> mx.array:
        return backend.launch(
            kernel,
            [arrays[i % copies], x],
            [("COUNT", count), ("THREADS", threads), ("GROUPS", groups), ("UNROLL", unroll), ("ONCE", once)],
            (groups * threads, 1, 1),
            (threads, 1, 1),
            [(8,)],
            [mx.float32],
        )[0]

    return min(
        timed(partial(call, per_core * CORES, threads, unroll, once), x)
        for per_core, threads, unroll in SHAPES
        for once in ((False, True) if backend.name == "cuda" else (False,))
    )
