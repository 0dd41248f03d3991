// Runs one launch: threadgroups in turn, lanes as fibers, synchronisation as a meeting of fibers.
#define _GNU_SOURCE 1
#define _XOPEN_SOURCE 700
#define _DARWIN_C_SOURCE 1
#include "executor.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "fiber.h"

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace bench {

State g;

const char* const kind_names[] = {
    "simd_sum", "simd_product", "simd_min", "simd_max", "simd_and", "simd_or", "simd_xor", "simd_prefix",
    "simd_shuffle", "simd_broadcast", "simd vote", "simdgroup_multiply", "quad function", "simdgroup_load/store",
    "simdgroup_barrier", "threadgroup_barrier"};

void say(const char* format, ...) {
  va_list list;
  va_start(list, format);
  const size_t used = strlen(g.launch->message);
  vsnprintf(g.launch->message + used, sizeof(g.launch->message) - used, format, list);
  va_end(list);
}

// Ends the launch from inside a lane; never returns to it.
[[noreturn]] void fail(Status status, uint32_t line) {
  Launch* l = g.launch;
  if (l->status == kOk) {
    l->status = status;
    l->fault_line = line;
    if (g.lane) {
      for (int i = 0; i < 3; i++) l->fault_threadgroup[i] = g.lane->thread.threadgroup_position_in_grid[i];
      l->fault_lane = g.lane->thread.index_in_simdgroup;
      l->fault_simdgroup = g.lane->thread.simdgroup_index;
    }
  }
  siglongjmp(g.escape, 1);
}

void* map_guarded(size_t bytes, size_t page) {
  char* base = (char*)mmap(nullptr, bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  if (mprotect(base + page, bytes, PROT_READ | PROT_WRITE) != 0) return nullptr;
  return base + page;
}

static void lane_main() {
  g.launch->entry(g.launch->arguments, &g.lane->thread);
  g.lane->state = kDone;
  bench_switch(&g.lane->sp, g.scheduler_sp);
  abort();
}

void wait(LaneState state, uint32_t kind, uint32_t line) {
  g.lane->state = state;
  g.lane->kind = kind;
  g.lane->line = line;
  bench_switch(&g.lane->sp, g.scheduler_sp);
}


static uint32_t random_below(uint32_t n) {
  g.random = g.random * 6364136223846793005ull + 1442695040888963407ull;
  return (uint32_t)((g.random >> 33) % n);
}

static void order(uint32_t* out, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) out[i] = g.launch->schedule == 1 ? n - 1 - i : i;
  if (g.launch->schedule != 2) return;
  for (uint32_t i = n; i > 1; i--) {
    const uint32_t j = random_below(i), t = out[i - 1];
    out[i - 1] = out[j];
    out[j] = t;
  }
}

// "lanes 0-15 at simd_sum (line 12), lanes 16-31 finished"
static void describe(Lane* lanes, uint32_t count) {
  for (uint32_t i = 0; i < count;) {
    uint32_t j = i;
    while (j + 1 < count && lanes[j + 1].state == lanes[i].state &&
           (lanes[i].state == kDone || (lanes[j + 1].kind == lanes[i].kind && lanes[j + 1].line == lanes[i].line)))
      j++;
    if (i) say(", ");
    if (i == j) say("lane %u ", i);
    else say("lanes %u-%u ", i, j);
    if (lanes[i].state == kDone) say("finished");
    else say("at %s (line %u)", kind_names[lanes[i].kind], lanes[i].line);
    i = j + 1;
  }
}

static void divergence(uint32_t simdgroup, const char* what) {
  g.lane = nullptr;
  Launch* l = g.launch;
  for (int i = 0; i < 3; i++) l->fault_threadgroup[i] = g.lanes[0].thread.threadgroup_position_in_grid[i];
  l->fault_simdgroup = simdgroup;
  say("%s in threadgroup (%u, %u, %u)", what, l->fault_threadgroup[0], l->fault_threadgroup[1],
      l->fault_threadgroup[2]);
  for (uint32_t s = 0; s < g.simdgroups; s++) {
    if (simdgroup != ~0u && s != simdgroup) continue;
    const uint32_t first = s * 32, count = g.lane_count - first < 32 ? g.lane_count - first : 32;
    say("; simdgroup %u: ", s);
    describe(g.lanes + first, count);
  }
  fail(kDivergence, g.lanes[simdgroup == ~0u ? 0 : simdgroup * 32].line);
}

// Runs every ready lane of a simdgroup until it waits or ends. Returns the number still alive.
static uint32_t run_lanes(uint32_t s) {
  const uint32_t first = s * 32, count = g.lane_count - first < 32 ? g.lane_count - first : 32;
  uint32_t sequence[32], alive = 0;
  order(sequence, count);
  for (uint32_t i = 0; i < count; i++) {
    Lane* lane = &g.lanes[first + sequence[i]];
    if (lane->state == kReady) {
      g.lane = lane;
      if (g.late) fail(kTimeout, lane->line);
      bench_switch(&g.scheduler_sp, lane->sp);
    }
    alive += lane->state != kDone;
  }
  g.lane = nullptr;
  return alive;
}

// One step of a simdgroup: run, then release its meeting if all alive lanes came to the same one.
// Returns false when it has to wait for the threadgroup (or is done).
static bool step_simdgroup(uint32_t s) {
  if (run_lanes(s) == 0) return false;
  const uint32_t first = s * 32, count = g.lane_count - first < 32 ? g.lane_count - first : 32;
  Lane* leader = nullptr;
  uint32_t active = 0;
  for (uint32_t i = 0; i < count; i++) {
    Lane* lane = &g.lanes[first + i];
    if (lane->state == kDone) continue;
    if (!leader) leader = lane;
    if (lane->state != leader->state || lane->kind != leader->kind || lane->line != leader->line)
      divergence(s, "lanes of a simdgroup diverge at a synchronisation");
    active |= 1u << i;
  }
  if (leader->state == kAtThreadgroup) return false;
  Simdgroup* group = &g.groups[s];
  if (leader->state == kAtSimdgroup) {
    if (leader->flags & 2) group->epoch++;
    if (leader->flags & 1) group->device_epoch++;
    for (uint32_t i = 0; i < count; i++)
      if (((active >> i) & 1) && g.lanes[first + i].flags != leader->flags)
        divergence(s, "lanes of a simdgroup reach a barrier with different flags");
  } else {
    Slots* slots = &group->slots[group->parity];
    slots->active = active;
    slots->has_result = 0;
    group->parity ^= 1;
  }
  for (uint32_t i = 0; i < count; i++)
    if ((active >> i) & 1) g.lanes[first + i].state = kReady;
  g.launch->synchronisations++;
  return true;
}

static void release_threadgroup() {
  Lane* leader = nullptr;
  uint32_t done = 0;
  for (uint32_t i = 0; i < g.lane_count; i++) {
    Lane* lane = &g.lanes[i];
    if (lane->state == kDone) {
      done++;
      continue;
    }
    if (!leader) leader = lane;
    if (lane->line != leader->line) divergence(~0u, "simdgroups wait at different threadgroup barriers");
  }
  if (done) divergence(~0u, "lanes finished while others wait at a threadgroup barrier");
  if (leader->flags & 2) g.epoch++;
  if (leader->flags & 1) g.device_epoch++;
  for (uint32_t i = 0; i < g.lane_count; i++) g.lanes[i].state = kReady;
  g.launch->synchronisations++;
}

static void run_threadgroup() {
  for (;;) {
    uint32_t sequence[32];
    bool open[32];
    order(sequence, g.simdgroups);
    for (uint32_t s = 0; s < g.simdgroups; s++) open[s] = true;
    if (g.launch->schedule == 2) {
      // Interleaves the simdgroups step by step, as a machine would.
      for (uint32_t left = g.simdgroups; left > 0;) {
        uint32_t pick = random_below(left), s = 0;
        for (;; s++)
          if (open[s] && pick-- == 0) break;
        if (!step_simdgroup(s)) {
          open[s] = false;
          left--;
        }
      }
    } else {
      for (uint32_t i = 0; i < g.simdgroups; i++)
        while (step_simdgroup(sequence[i])) {
        }
    }
    bool waiting = false;
    for (uint32_t i = 0; i < g.lane_count && !waiting; i++) waiting = g.lanes[i].state != kDone;
    if (!waiting) return;
    release_threadgroup();
  }
}

static void start_threadgroup(const uint32_t* at, const uint32_t* groups) {
  const Launch* l = g.launch;
  uint32_t size[3];
  for (int i = 0; i < 3; i++) {
    const uint32_t left = l->grid[i] - at[i] * l->group[i];
    size[i] = left < l->group[i] ? left : l->group[i];
  }
  g.lane_count = size[0] * size[1] * size[2];
  g.simdgroups = (g.lane_count + 31) / 32;
  g.epoch = g.device_epoch = 0;
  g.array_count = 0;
  g.group_number++;
  memset(g.array_used, 0, sizeof(g.array_used));
  g.threadgroup_bytes = 0;
  for (uint32_t s = 0; s < g.simdgroups; s++) {
    g.groups[s].parity = 0;
    g.groups[s].epoch = g.groups[s].device_epoch = 0;
  }
  uint32_t n = 0;
  for (uint32_t z = 0; z < size[2]; z++)
    for (uint32_t y = 0; y < size[1]; y++)
      for (uint32_t x = 0; x < size[0]; x++, n++) {
        Lane* lane = &g.lanes[n];
        const uint32_t p[3] = {x, y, z};
        for (int i = 0; i < 3; i++) {
          lane->thread.position_in_grid[i] = at[i] * l->group[i] + p[i];
          lane->thread.position_in_threadgroup[i] = p[i];
          lane->thread.threadgroup_position_in_grid[i] = at[i];
          lane->thread.threads_per_grid[i] = l->grid[i];
          lane->thread.threads_per_threadgroup[i] = size[i];
          lane->thread.dispatch_threads_per_threadgroup[i] = l->group[i];
          lane->thread.threadgroups_per_grid[i] = groups[i];
        }
        lane->thread.index_in_threadgroup = n;
        lane->thread.index_in_simdgroup = n % 32;
        lane->thread.simdgroup_index = n / 32;
        lane->thread.simdgroups_per_threadgroup = g.simdgroups;
        lane->thread.dispatch_simdgroups_per_threadgroup = (l->group[0] * l->group[1] * l->group[2] + 31) / 32;
        lane->state = kReady;
        lane->line = 0;
        lane->sp = bench_prepare_stack(lane->stack_top, lane_main);
      }
}

static void run_grid() {
  const Launch* l = g.launch;
  uint32_t groups[3];
  uint64_t total = 1;
  for (int i = 0; i < 3; i++) {
    groups[i] = (l->grid[i] + l->group[i] - 1) / l->group[i];
    total *= groups[i];
  }
  // A random schedule visits the threadgroups with a stride prime to their number, from a random start.
  uint64_t stride = 1, start = 0;
  if (l->schedule == 2 && total > 1) {
    start = random_below((uint32_t)(total < 0x7fffffff ? total : 0x7fffffff));
    for (stride = 1 + random_below(0x7fffffff) % total;; stride++) {
      uint64_t a = total, b = stride % total;
      while (b) {
        const uint64_t t = a % b;
        a = b;
        b = t;
      }
      if (a == 1) break;
    }
  }
  for (uint64_t i = 0; i < total; i++) {
    uint64_t k = l->schedule == 1 ? total - 1 - i : (start + i * stride) % total;
    const uint32_t at[3] = {(uint32_t)(k % groups[0]), (uint32_t)(k / groups[0] % groups[1]),
                            (uint32_t)(k / groups[0] / groups[1])};
    start_threadgroup(at, groups);
    run_threadgroup();
    if (g.threadgroup_bytes > g.launch->threadgroup_bytes) g.launch->threadgroup_bytes = g.threadgroup_bytes;
  }
}

static bool prepare() {
  if (g.lanes) return true;
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  const size_t each = kStackBytes + page;
  char* stacks = (char*)mmap(nullptr, each * kMaxLanes + page, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  Lane* lanes = (Lane*)calloc(kMaxLanes, sizeof(Lane));
  g.groups = (Simdgroup*)calloc(kMaxLanes / 32, sizeof(Simdgroup));
  if (stacks == MAP_FAILED || !lanes || !g.groups) return false;
  for (uint32_t i = 0; i < kMaxLanes; i++) {
    mprotect(stacks + i * each, page, PROT_NONE);
    lanes[i].stack_low = stacks + i * each;
    lanes[i].stack_top = stacks + (i + 1) * each;
  }
  g.page = page;
  g.signal_stack = malloc(kSignalStackBytes);
  g.lanes = lanes;
  return g.signal_stack != nullptr;
}

static uint64_t interrupted_at(void* context) {
#if defined(__linux__) && defined(__x86_64__)
  return (uint64_t)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
#elif defined(__linux__) && defined(__aarch64__)
  return (uint64_t)((ucontext_t*)context)->uc_mcontext.pc;
#else
  (void)context;
  return 0;
#endif
}

static void on_signal(int number, siginfo_t* info, void* context) {
  if (!g.launch || !pthread_equal(pthread_self(), g.thread)) {
    signal(number, SIG_DFL);
    raise(number);
    return;
  }
  char* address = (char*)info->si_addr;
  g.launch->fault_address = (uint64_t)address;
  g.launch->fault_code = interrupted_at(context);
  if (number == SIGFPE) fail(kArithmetic, 0);
  if (number == SIGURG) {
    if (g.lane) fail(kTimeout, g.lane->line);
    g.late = true;
    return;
  }
#if defined(__linux__) && defined(__x86_64__)
  if (number == SIGSEGV && info->si_code == SI_KERNEL) fail(kMisaligned, 0);
#endif
  if (g.lane && address >= g.lane->stack_low && address < g.lane->stack_low + g.page) fail(kStack, 0);
  for (uint32_t k = 0; k < g.array_count; k++) {
    const uint8_t* pages = g.arrays[k].pages;
    if (!g.array_used[k] || (uint8_t*)address < pages - g.page || (uint8_t*)address >= pages + kArrayPages + g.page)
      continue;
    say("access outside threadgroup variable %u, at byte %lld of %llu", k,
        (long long)((uint8_t*)address - g.arrays[k].data), (unsigned long long)g.arrays[k].size);
  }
  fail(kFault, 0);
}

}  // namespace bench

using namespace bench;

extern "C" {

int bench_launch(Launch* launch) {
  if (!prepare()) return -1;
  g.launch = launch;
  g.thread = pthread_self();
  g.random = launch->seed * 2 + 1;
  g.lane = nullptr;
  g.group_number = 0;
  g.in_atomic = false;
  g.late = false;
  launch->status = kOk;
  launch->message[0] = 0;
  launch->fault_code = 0;
  if (launch->checked & 2) {
    for (uint32_t i = 0; i < launch->buffer_count; i++) {
      Buffer* b = &launch->buffers[i];
      b->order = b->writable && b->size ? (Byte*)calloc(b->size, sizeof(Byte)) : nullptr;
    }
  }
  struct sigaction action = {}, old[4];
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&action.sa_mask);
  const int numbers[4] = {SIGSEGV, SIGBUS, SIGFPE, SIGURG};
  stack_t stack = {}, old_stack;
  stack.ss_sp = g.signal_stack;
  stack.ss_size = kSignalStackBytes;
  sigaltstack(&stack, &old_stack);
  for (int i = 0; i < 4; i++) sigaction(numbers[i], &action, &old[i]);
  if (sigsetjmp(g.escape, 1) == 0) run_grid();
  g.lane = nullptr;
  if (launch->checked & 2) {
    for (uint32_t i = 0; i < launch->buffer_count; i++) free(launch->buffers[i].order);
  }
  for (int i = 0; i < 4; i++) sigaction(numbers[i], &old[i], nullptr);
  sigaltstack(&old_stack, nullptr);
  g.launch = nullptr;
  g.lane = nullptr;
  return 0;
}

// Interrupts a launch that runs too long; called from another thread.
void bench_interrupt() {
  if (g.launch) pthread_kill(g.thread, SIGURG);
}

void* bench_map(uint64_t bytes) { return map_guarded(bytes, (size_t)sysconf(_SC_PAGESIZE)); }

void bench_unmap(void* at, uint64_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  munmap((char*)at - page, bytes + 2 * page);
}
}
