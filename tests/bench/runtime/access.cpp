// The checked build: the compiler calls these before every load and store that can reach shared memory.
#include <stdio.h>
#include <string.h>

#include "executor.h"

namespace bench {

// Where and when the running lane is, for the order of two accesses.
struct Moment {
  uint32_t lane, simdgroup, epoch, simd_epoch, group;
};

static Moment now(bool device_memory) {
  const Thread& t = g.lane->thread;
  const Simdgroup& s = g.groups[t.simdgroup_index];
  return {t.index_in_threadgroup, t.simdgroup_index, device_memory ? g.device_epoch : g.epoch,
          device_memory ? s.device_epoch : s.epoch, g.group_number};
}

// An earlier access is ordered before this moment by program order or by a barrier between them.
static bool ordered(const Access& a, const Moment& m) {
  if (a.group != m.group) return false;
  if (a.lane == m.lane) return true;
  if (a.epoch < m.epoch) return true;
  return a.simdgroup == m.simdgroup && a.simd_epoch < m.simd_epoch;
}

static void record(Access* a, const Moment& m) {
  const bool fresh = !a->present || a->group != m.group || a->epoch < m.epoch;
  if (fresh || a->lane == m.lane || (a->simdgroup == m.simdgroup && a->simd_epoch < m.simd_epoch)) {
    *a = {1, m.lane, m.simdgroup, m.epoch, m.simd_epoch, m.group};
    return;
  }
  a->lane = ~0u;  // several lanes in one epoch
  if (a->simdgroup != m.simdgroup) a->simdgroup = ~0u;
  a->simd_epoch = m.simd_epoch;
}

[[noreturn]] static void refuse(Status status, uintptr_t at, uint64_t size, bool write) {
  g.launch->fault_address = at;
  g.launch->fault_write = write;
  g.launch->fault_size = (uint32_t)size;
  fail(status, 0);
}

static void race(const char* what, const char* name, const Access& other, uintptr_t at, uint64_t size, bool write) {
  say("race in %s memory: lane %u %s", name, g.lane->thread.index_in_threadgroup, what);
  if (other.lane == ~0u) say(" several other lanes");
  else say(" lane %u", other.lane);
  if (other.group != g.group_number) say(" of another threadgroup");
  say(" without a barrier in between");
  refuse(kRace, at, size, write);
}

static void check_order(Byte* bytes, uint64_t size, bool write, bool device_memory, uintptr_t at) {
  const char* name = device_memory ? "device" : "threadgroup";
  const Moment m = now(device_memory);
  for (uint64_t i = 0; i < size; i++) {
    Byte* b = &bytes[i];
    if (b->write.present && !ordered(b->write, m))
      race(write ? "overwrites what was written by" : "reads what was written by", name, b->write, at + i, size, write);
    if (write) {
      if (b->read.present && !ordered(b->read, m))
        race("overwrites what was read by", name, b->read, at + i, size, write);
      record(&b->write, m);
    } else {
      record(&b->read, m);
    }
  }
}

static bool in_array(uintptr_t at, uint64_t size, bool write) {
  for (uint32_t k = 0; k < g.array_count; k++) {
    if (!g.array_used[k]) continue;
    Array* a = &g.arrays[k];
    const uintptr_t low = (uintptr_t)a->pages, first = (uintptr_t)a->data;
    if (at < low || at >= low + kArrayPages) continue;
    if (at < first || at + size > first + a->size) {
      say("%s of %llu bytes outside threadgroup variable %u, at byte %lld of %llu", write ? "write" : "read",
          (unsigned long long)size, k, (long long)at - (long long)first, (unsigned long long)a->size);
      refuse(kOutOfBounds, at, size, write);
    }
    Byte* bytes = a->shadow + (at - first);
    if (!write && !g.in_atomic) {
      for (uint64_t i = 0; i < size; i++) {
        if (bytes[i].write.present || bytes[i].atomic) continue;
        say("threadgroup variable %u is read before it was written, at byte %lld", k, (long long)(at + i - first));
        refuse(kUninitialised, at, size, write);
      }
    }
    if (g.in_atomic) {
      for (uint64_t i = 0; i < size; i++) bytes[i].atomic = 1;
    } else {
      check_order(bytes, size, write, false, at);
    }
    return true;
  }
  return false;
}

static void in_buffer(uintptr_t at, uint64_t size, bool write) {
  Launch* l = g.launch;
  for (uint32_t k = 0; k < l->buffer_count; k++) {
    Buffer* b = &l->buffers[k];
    const uintptr_t first = (uintptr_t)b->data, end = first + b->size, page = g.page - 1;
    if (at + size <= (first & ~page) || at >= ((end + page) & ~page)) continue;
    if (at < first || at + size > end) {
      say("%s of %llu bytes outside the buffer of %llu bytes", write ? "write" : "read", (unsigned long long)size,
          (unsigned long long)b->size);
      refuse(kOutOfBounds, at, size, write);
    }
    if (write && !b->writable) {
      say("write to an input");
      refuse(kReadOnly, at, size, write);
    }
    if (write) {
      b->stores++;
      b->bytes_written += size;
    } else {
      b->loads++;
      b->bytes_read += size;
    }
    uint8_t* shadow = b->shadow + (at - first);
    if (!write && !b->initialised && (l->checked & 2)) {
      for (uint64_t i = 0; i < size; i++) {
        if (shadow[i] & 2) continue;
        say("output is read before it was written");
        refuse(kUninitialised, at + i, size, write);
      }
    }
    for (uint64_t i = 0; i < size; i++) shadow[i] |= write ? 2 : 1;
    if (b->order && (l->checked & 2) && !g.in_atomic) check_order(b->order + (at - first), size, write, true, at);
    return;
  }
}

static void touch(uintptr_t at, uint64_t size, bool write, void* code) {
  if (!g.lane || !g.launch || !size) return;
  if (at >= (uintptr_t)g.lane->stack_low && at < (uintptr_t)g.lane->stack_top) return;
  g.launch->fault_code = (uint64_t)code - 1;  // inside the call, so that its line is found
  if ((size == 2 || size == 4 || size == 8 || size == 16) && at % (size < 8 ? size : 8) != 0) {
    say("misaligned %s of %llu bytes", write ? "write" : "read", (unsigned long long)size);
    refuse(kMisaligned, at, size, write);
  }
  if ((g.launch->checked & 2) && in_array(at, size, write)) return;
  in_buffer(at, size, write);
}

}  // namespace bench

using bench::touch;

extern "C" {

#define BENCH_SIZED(N)                                                    \
  void __asan_load##N##_noabort(uintptr_t at) { touch(at, N, false, __builtin_return_address(0)); }    \
  void __asan_store##N##_noabort(uintptr_t at) { touch(at, N, true, __builtin_return_address(0)); }
BENCH_SIZED(1)
BENCH_SIZED(2)
BENCH_SIZED(4)
BENCH_SIZED(8)
BENCH_SIZED(16)

void __asan_loadN_noabort(uintptr_t at, uintptr_t size) {
  // Three-component vectors load as sixteen bytes of which twelve count; the compiler asks for the exact width.
  touch(at, size, false, __builtin_return_address(0));
}
void __asan_storeN_noabort(uintptr_t at, uintptr_t size) { touch(at, size, true, __builtin_return_address(0)); }

void* __asan_memcpy(void* to, const void* from, uintptr_t size) {
  touch((uintptr_t)from, size, false, __builtin_return_address(0));
  touch((uintptr_t)to, size, true, __builtin_return_address(0));
  return memcpy(to, from, size);
}
void* __asan_memmove(void* to, const void* from, uintptr_t size) {
  touch((uintptr_t)from, size, false, __builtin_return_address(0));
  touch((uintptr_t)to, size, true, __builtin_return_address(0));
  return memmove(to, from, size);
}
void* __asan_memset(void* to, int value, uintptr_t size) {
  touch((uintptr_t)to, size, true, __builtin_return_address(0));
  return memset(to, value, size);
}
void __asan_handle_no_return() {}

void msl_atomic(uint32_t begin) { bench::g.in_atomic = begin != 0; }
}
