// What a running lane calls: meetings of lanes, threadgroup arrays, and conversions the machine lacks.
#include <stdlib.h>
#include <string.h>

#include "executor.h"

using namespace bench;

extern "C" {

Slots* msl_exchange(uint32_t kind, uint32_t line, const void* value, uint32_t size) {
  Lane* lane = g.lane;
  Simdgroup* group = &g.groups[lane->thread.simdgroup_index];
  Slots* slots = &group->slots[group->parity];
  memcpy(slots->data[lane->thread.index_in_simdgroup], value, size);
  wait(kAtSimd, kind, line);
  return slots;
}

uint32_t msl_lane_index() { return g.lane->thread.index_in_simdgroup; }

void msl_simdgroup_barrier(uint32_t flags, uint32_t line) {
  g.lane->flags = flags;
  wait(kAtSimdgroup, kKindSimdgroupBarrier, line);
}

void msl_threadgroup_barrier(uint32_t flags, uint32_t line) {
  g.lane->flags = flags;
  wait(kAtThreadgroup, kKindThreadgroupBarrier, line);
}

void msl_inactive_lane(uint32_t kind, uint32_t line, uint32_t source) {
  say("%s takes a value from lane %u, which is not active", kind_names[kind], source);
  fail(kInactiveLane, line);
}

// Every array of a kernel has pages of its own, so that running off its end is a fault.
void* msl_threadgroup_array(uint32_t slot, uint64_t size, uint64_t align) {
  if (slot >= kMaxArrays) {
    say("more than %u threadgroup variables", (unsigned)kMaxArrays);
    fail(kThreadgroupMemory, 0);
  }
  Array* array = &g.arrays[slot];
  if (g.array_used[slot]) return array->data;
  if (align < 16) align = 16;
  g.threadgroup_bytes += (size + align - 1) / align * align;
  if (g.threadgroup_bytes > g.launch->threadgroup_limit || size > kArrayPages) {
    say("threadgroup memory exceeds the limit: %llu bytes, %u allowed", (unsigned long long)g.threadgroup_bytes,
        (unsigned)g.launch->threadgroup_limit);
    fail(kThreadgroupMemory, 0);
  }
  if (!array->pages) {
    array->pages = (uint8_t*)map_guarded(kArrayPages, g.page);
    array->shadow = (Byte*)calloc(kArrayPages, sizeof(Byte));
    if (!array->pages || !array->shadow) {
      say("out of memory");
      fail(kThreadgroupMemory, 0);
    }
  }
  array->data = array->pages + kArrayPages - (size + align - 1) / align * align;
  array->size = size;
  memset(array->pages + kArrayPages - (size + align - 1) / align * align, 0xff, (size + align - 1) / align * align);
  if (g.launch->checked & 2) memset((void*)array->shadow, 0, size * sizeof(Byte));
  g.array_used[slot] = true;
  if (slot >= g.array_count) g.array_count = slot + 1;
  return array->data;
}

// Conversions that the compiler calls where the machine has no instruction; round to nearest even.
static uint16_t round_bfloat(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__bf16 __truncsfbf2(float value) {
  const uint16_t bits = round_bfloat(value);
  __bf16 out;
  memcpy(&out, &bits, 2);
  return out;
}
}
