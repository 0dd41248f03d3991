// State shared by the executor and the access checker.
#pragma once
#include <pthread.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

#include "launch.h"

namespace bench {

constexpr uint32_t kMaxLanes = 1024;
constexpr uint32_t kMaxArrays = 64;
constexpr uint32_t kArrayPages = 262144;
constexpr uint64_t kStackBytes = 126976;
constexpr uint64_t kSignalStackBytes = 65536;
constexpr uint32_t kKindSimdgroupBarrier = 14;
constexpr uint32_t kKindThreadgroupBarrier = 15;

enum LaneState : uint32_t { kReady, kAtSimd, kAtSimdgroup, kAtThreadgroup, kDone };

struct Lane {
  void* sp;
  LaneState state;
  uint32_t kind, line, flags;
  char* stack_low;
  char* stack_top;
  Thread thread;
};

// The same layout as the shim's msl_slots.
struct Slots {
  alignas(16) uint8_t data[32][64];
  uint8_t result[64];
  uint32_t active;
  uint32_t has_result;
};

struct Simdgroup {
  Slots slots[2];  // a lane can be at most one meeting ahead of its neighbours
  uint32_t parity;
  uint32_t epoch, device_epoch;  // barriers passed that order threadgroup or device memory
};

// Checked build: the last access of a kind to a byte of shared memory. `lane` ~0: several lanes in one epoch.
struct Access {
  uint32_t present, lane, simdgroup, epoch, simd_epoch, group;
};

struct Byte {
  Access write, read;
  uint32_t atomic;  // touched by an atomic, which initialises it and races with nobody
};

struct Array {
  uint8_t* pages;
  uint8_t* data;
  uint64_t size;
  Byte* shadow;
};

struct State {
  Launch* launch;
  Lane* lane;
  Lane* lanes;
  Simdgroup* groups;
  Array arrays[kMaxArrays];
  bool array_used[kMaxArrays];
  uint32_t lane_count, simdgroups, array_count, group_number;
  uint32_t epoch, device_epoch;
  bool in_atomic;
  volatile bool late;  // the limit passed while no lane ran
  uint64_t threadgroup_bytes, random;
  void* scheduler_sp;
  void* signal_stack;
  size_t page;
  pthread_t thread;
  sigjmp_buf escape;
};

extern State g;

extern const char* const kind_names[];

// Hands the running lane back to the scheduler until its meeting is complete.
void wait(LaneState state, uint32_t kind, uint32_t line);
void* map_guarded(size_t bytes, size_t page);
void say(const char* format, ...);
[[noreturn]] void fail(Status status, uint32_t line);

}  // namespace bench
