// What Python and the executor agree on: one launch, its buffers, its schedule, and what went wrong.
#pragma once
#include <stdint.h>

namespace bench {
struct Byte;
}

// What a lane knows about itself; the generated entry reads the built-ins from here.
struct Thread {
  uint32_t position_in_grid[3];
  uint32_t position_in_threadgroup[3];
  uint32_t threadgroup_position_in_grid[3];
  uint32_t threads_per_grid[3];
  uint32_t threads_per_threadgroup[3];
  uint32_t dispatch_threads_per_threadgroup[3];
  uint32_t threadgroups_per_grid[3];
  uint32_t index_in_threadgroup;
  uint32_t index_in_simdgroup;
  uint32_t simdgroup_index;
  uint32_t simdgroups_per_threadgroup;
  uint32_t dispatch_simdgroups_per_threadgroup;
};

enum Status : uint32_t {
  kOk = 0,
  kFault = 1,          // access outside every buffer (signal)
  kDivergence = 2,     // lanes at different synchronisations
  kThreadgroupMemory = 3,  // more than threadgroup_limit
  kInactiveLane = 4,   // value read from a lane that is not there
  kArithmetic = 5,     // integer division by zero
  kTimeout = 6,
  kOutOfBounds = 7,    // checked build: access outside the buffer it started in, or between arrays
  kUninitialised = 8,  // checked build: threadgroup memory or output read before it was written
  kRace = 9,           // checked build: two lanes touch the same bytes without a barrier between them
  kReadOnly = 10,      // checked build: write to an input
  kStack = 11,         // private memory of a lane exhausted
  kMisaligned = 12,    // access not aligned to its own width
};

struct Buffer {
  uint8_t* data;
  uint64_t size;
  uint32_t writable;
  uint32_t initialised;
  uint8_t* shadow;  // checked build: one byte per byte (bit 0 read, bit 1 written)
  bench::Byte* order;  // checked build: who touched each byte last, for outputs
  uint64_t bytes_read, bytes_written, loads, stores;
};

struct Launch {
  void (*entry)(const void* arguments, const Thread* thread);
  const void* arguments;
  uint32_t grid[3];
  uint32_t group[3];
  uint32_t schedule;  // 0 forward, 1 reverse, 2 random
  uint32_t checked;  // bit 0: count and bounds; bit 1: races and uninitialised reads
  uint64_t seed;
  uint64_t timeout_ns;
  Buffer* buffers;
  uint32_t buffer_count;
  uint32_t threadgroup_limit;  // bytes, at most kArrayPages
  uint32_t status;
  uint64_t synchronisations;
  uint64_t threadgroup_bytes;
  uint64_t fault_address;
  uint64_t fault_code;  // address of the instruction, 0 when unknown
  uint32_t fault_line;
  uint32_t fault_threadgroup[3];
  uint32_t fault_lane, fault_simdgroup;
  uint32_t fault_write;
  uint32_t fault_size;
  char message[2048];
};
