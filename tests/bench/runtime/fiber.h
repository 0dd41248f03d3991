// One fiber per lane: a stack with a guard page and a switch of callee-saved registers.
#pragma once
#include <stddef.h>

extern "C" void bench_switch(void** save, void* load);

#if defined(__APPLE__)
#define BENCH_SYMBOL "_bench_switch"
#else
#define BENCH_SYMBOL "bench_switch"
#endif

#if defined(__x86_64__)
asm(".text\n.globl " BENCH_SYMBOL "\n" BENCH_SYMBOL
    ":\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\n"
    "mov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\n"
    "ret\n");

// The first switch to this stack returns into `start`, as if `start` had just been called.
inline void* bench_prepare_stack(char* top, void (*start)()) {
  void** sp = (void**)top;
  *--sp = nullptr;  // keeps the stack 16-byte aligned at the call and ends backtraces
  *--sp = (void*)start;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  return sp;
}
#elif defined(__aarch64__)
asm(".text\n.p2align 2\n.globl " BENCH_SYMBOL "\n" BENCH_SYMBOL
    ":\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp, #0]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp, #0]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");

inline void* bench_prepare_stack(char* top, void (*start)()) {
  void** sp = (void**)(top - 160);
  for (int i = 0; i < 20; i++) sp[i] = nullptr;
  sp[11] = (void*)start;  // x30
  return sp;
}
#else
#error "the shader bench runs on x86-64 and arm64"
#endif
