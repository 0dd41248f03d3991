"""Programs that Apple's compiler rejects, each for its own reason, must not pass the bench's type check."""

from __future__ import annotations

import pytest

from tests.bench import check_text

PROLOGUE = """#include <metal_stdlib>
using namespace metal;
"""

# name: (why it is ill-formed, rule that must report it ("compiler" for clang itself), program)
PROGRAMS: dict[str, tuple[str, str, str]] = {
    "pointer_parameter": ("a pointer parameter needs an address space", "address-space", "float f(float* p) { return p[0]; }"),
    "reference_parameter": ("a reference parameter needs an address space", "address-space", "void f(float& r) { r = 1.0f; }"),
    "pointer_result": ("a returned pointer needs an address space", "address-space", "float* f(device float* p) { return 0; }"),
    "pointer_local": ("a local pointer needs an address space", "address-space", "void f() { float x = 0; float* p = &x; *p = 1.0f; }"),
    "pointer_member": ("a member pointer needs an address space", "address-space", "struct S { float* p; };"),
    "pointer_cast": ("a pointer cast needs an address space", "address-space", "float f(device float* p) { return ((float*)p)[0]; }"),
    "template_pointer": (
        "a pointer to a template type needs an address space too",
        "address-space",
        "template <typename T> T f(const T* p) { return p[0]; }",
    ),
    "device_to_thread": ("device memory is not thread memory", "compiler", "void f(device float* p) { thread float* q = p; q[0] = 0; }"),
    "thread_to_device": ("thread memory is not device memory", "compiler", "void f() { float x; device float* q = &x; q[0] = 0; }"),
    "threadgroup_to_device": (
        "threadgroup memory is not device memory",
        "compiler",
        "void g(device float* p); void f(threadgroup float* p) { g(p); }",
    ),
    "constant_to_device": ("constant memory is not device memory", "compiler", "void f(constant float* p) { const device float* q = p; }"),
    "cast_across_spaces": (
        "a C-style cast may not change the address space",
        "compiler",
        "void f(constant float* p) { const device float* q = (const device float*)p; }",
    ),
    "write_constant": ("constant memory is read-only", "compiler", "void f(constant float* p) { p[0] = 1.0f; }"),
    "write_const_device": ("a const buffer is read-only", "compiler", "void f(const device float* p) { p[0] = 1.0f; }"),
    "mutable_global": ("a program-scope variable must be constant", "global", "int counter = 0;"),
    "constexpr_global": ("constexpr alone is not the constant address space", "global", "constexpr int N = 4;"),
    "static_local": ("there are no static variables", "static", "int f() { static int n = 0; return ++n; }"),
    "threadgroup_in_helper": (
        "threadgroup variables live in kernels only",
        "compiler",
        "void f() { threadgroup float part[4]; part[0] = 0; }",
    ),
    "threadgroup_in_inner_scope": (
        "threadgroup variables live in a kernel's outermost scope",
        "compiler",
        "[[kernel]] void k(device float* o [[buffer(0)]]) { if (o[0] > 0) { threadgroup float part[4]; part[0] = 0; } }",
    ),
    "threadgroup_initialiser": (
        "threadgroup variables have no initialiser",
        "compiler",
        "[[kernel]] void k(device float* o [[buffer(0)]]) { threadgroup float part = 1.0f; o[0] = part; }",
    ),
    "threadgroup_global": ("threadgroup variables do not live at program scope", "compiler", "threadgroup float part[4];"),
    "double_variable": ("there is no double", "double", "float f() { double x = 1.0; return float(x); }"),
    "long_long": ("there is no long long", "long-long", "long f() { long long x = 1; return x; }"),
    "float_to_bfloat": ("float does not become bfloat implicitly", "bfloat", "bfloat f(float x) { return x; }"),
    "float_literal_to_bfloat": ("a float literal does not become bfloat", "bfloat", "void f() { bfloat x = 1.0f; }"),
    "float_argument_to_bfloat": (
        "an argument does not become bfloat",
        "bfloat",
        "void g(bfloat x); void f(float x) { g(x); }",
    ),
    "float_store_to_bfloat": ("a store does not narrow to bfloat", "bfloat", "void f(device bfloat* p, float x) { p[0] = x; }"),
    "compound_bfloat": ("compound assignment narrows to bfloat", "bfloat", "void f(device bfloat* p, float x) { p[0] += x; }"),
    "half_to_bfloat": ("half does not become bfloat", "compiler", "bfloat f(half x) { return x; }"),
    "bfloat_times_half": ("bfloat and half do not mix", "bfloat", "float f(bfloat a, half b) { return float(a * b); }"),
    "bfloat_exp": ("math functions take no bfloat", "compiler", "float f(bfloat x) { return float(metal::exp(x)); }"),
    "bfloat_max": ("max takes no bfloat", "compiler", "bfloat f(bfloat x, bfloat y) { return metal::max(x, y); }"),
    "bfloat_simd_sum": ("simd functions take no bfloat", "compiler", "bfloat f(bfloat x) { return simd_sum(x); }"),
    "int4_plus_uint4": ("vectors of different types do not add", "compiler", "int4 f(int4 a, uint4 b) { return a + b; }"),
    "half4_times_float": ("a float scalar does not scale a half vector", "compiler", "half4 f(half4 a, float b) { return a * b; }"),
    "float4_to_half4": ("vectors do not convert implicitly", "compiler", "half4 f(float4 a) { return a; }"),
    "float3_to_float4": ("widths differ", "compiler", "float4 f(float3 a) { return a; }"),
    "constructor_too_long": ("a constructor takes exactly its components", "compiler", "float4 f() { return float4(1.0f, 2.0f, 3.0f, 4.0f, 5.0f); }"),
    "constructor_too_short": ("a constructor takes exactly its components", "compiler", "float4 f() { return float4(1.0f, 2.0f); }"),
    "swizzle_out_of_range": ("a float2 has no z", "compiler", "float f(float2 a) { return a.z; }"),
    "swizzle_written_twice": ("a swizzle is written once per component", "compiler", "void f(thread float4& a) { a.xx = float2(1.0f); }"),
    "ambiguous_max": ("max of int and uint is ambiguous", "compiler", "uint f(int a, uint b) { return metal::max(a, b); }"),
    "ambiguous_min": ("min of int and float is ambiguous", "compiler", "float f(int a, float b) { return metal::min(a, b); }"),
    "vector_condition": ("a vector is no condition", "compiler", "float f(float4 a) { if (a) return 1.0f; return 0.0f; }"),
    "vector_compare_arithmetic": (
        "comparing vectors gives bools, not numbers",
        "vector-compare",
        "int4 f(float4 a, float4 b) { return a < b; }",
    ),
    "as_type_size": ("as_type needs equal sizes", "compiler", "half f(float x) { return as_type<half>(x); }"),
    "function_pointer": ("there are no function pointers", "compiler", "float g(float x); void f() { float (*p)(float) = g; p(1.0f); }"),
    "recursion": ("functions may not call themselves", "recursion", "int f(int n) { return n < 2 ? n : f(n - 1) + f(n - 2); }"),
    "mutual_recursion": (
        "functions may not call each other in a circle",
        "recursion",
        "int g(int n); int f(int n) { return n ? g(n - 1) : 0; } int g(int n) { return n ? f(n - 1) : 1; }",
    ),
    "goto": ("there is no goto", "goto", "void f(thread int& n) { again: if (n-- > 0) goto again; }"),
    "lambda": ("there are no lambdas", "lambda", "int f(int n) { auto g = [](int x) { return x + 1; }; return g(n); }"),
    "virtual_function": ("there are no virtual functions", "compiler", "struct S { virtual int f() { return 1; } };"),
    "exception": ("there are no exceptions", "keyword", "void f() { throw 1; }"),
    "new_expression": ("there is no new", "keyword", "void f() { thread int* p = new int; *p = 1; }"),
    "thread_local_variable": ("there is no thread_local", "keyword", "thread_local int n;"),
    "dynamic_cast": ("there is no dynamic_cast", "keyword", "struct A {}; void f(thread A* a) { dynamic_cast<thread A*>(a); }"),
    "std_namespace": ("the library is metal::, not std::", "compiler", "float f(float x) { return std::exp(x); }"),
    "printf": ("there is no printf", "library", 'void f() { printf("x"); }'),
    "variable_length_array": ("array lengths are constants", "compiler", "float f(int n) { float a[n]; a[0] = 1; return a[0]; }"),
    "undeclared": ("the name does not exist", "compiler", "float f(float x) { return swish(x); }"),
    "simd_extra_argument": ("simd_sum takes one argument", "compiler", "float f(float x) { return simd_sum(x, 3u); }"),
    "simd_sum_long": ("simd functions take no 64-bit integers", "compiler", "long f(long x) { return simd_sum(x); }"),
    "simd_and_float": ("simd_and takes integers", "compiler", "float f(float x) { return simd_and(x); }"),
    "barrier_without_flags": ("a barrier needs its flags", "compiler", "void f() { threadgroup_barrier(); }"),
    "barrier_with_number": ("flags are mem_flags, not numbers", "compiler", "void f() { threadgroup_barrier(2); }"),
    "atomic_plain_add": ("atomics have no operators", "compiler", "void f(device atomic_uint* p) { *p += 1u; }"),
    "atomic_order": ("only relaxed order exists", "compiler", "void f(device atomic_uint* p) { atomic_fetch_add_explicit(p, 1u, memory_order_seq_cst); }"),
    "atomic_on_plain": ("atomic functions need an atomic object", "compiler", "void f(device uint* p) { atomic_fetch_add_explicit(p, 1u, memory_order_relaxed); }"),
    "matrix_shape": ("a simdgroup_matrix is 8x8", "compiler", "void f() { simdgroup_matrix<float, 16, 16> m; }"),
    "matrix_element": ("a simdgroup_matrix holds floats", "compiler", "void f() { simdgroup_matrix<int, 8, 8> m; }"),
    "matrix_load_thread": ("a matrix is not loaded from thread memory", "compiler", "void f() { float a[64]; simdgroup_float8x8 m; simdgroup_load(m, a, 8); }"),
    "matrix_load_type": (
        "a matrix is loaded from its own element type",
        "compiler",
        "void f(device half* p) { simdgroup_float8x8 m; simdgroup_load(m, p, 8); }",
    ),
    "method_on_device": (
        "a method called on a device object must be qualified",
        "method-space",
        "struct S { float x; float get() const { return x; } }; float f(device S* s) { return s->get(); }",
    ),
    "method_on_threadgroup": (
        "a method called on a threadgroup object must be qualified",
        "method-space",
        "struct S { float x; float get() const device { return x; } float get() const { return x; } };"
        "float f(threadgroup S* s) { return s->get(); }",
    ),
    "kernel_result": ("a kernel returns void", "kernel", "[[kernel]] int k(device int* o [[buffer(0)]]) { return o[0]; }"),
    "unknown_attribute": ("the attribute does not exist", "attribute", "[[kernel]] void k(device int* o [[buffer(0)]], uint i [[thread_position]]) { o[i] = 1; }"),
    "missing_attribute": ("every kernel parameter needs an attribute", "attribute", "[[kernel]] void k(device int* o [[buffer(0)]], uint i) { o[i] = 1; }"),
    "duplicate_buffer": (
        "two parameters share a buffer",
        "attribute",
        "[[kernel]] void k(const device int* a [[buffer(0)]], device int* o [[buffer(0)]]) { o[0] = a[0]; }",
    ),
    "duplicate_builtin": (
        "two parameters share a built-in",
        "attribute",
        "[[kernel]] void k(device int* o [[buffer(0)]], uint i [[thread_index_in_simdgroup]],"
        " uint j [[thread_index_in_simdgroup]]) { o[i] = j; }",
    ),
    "builtin_type": ("a built-in is an unsigned integer", "attribute", "[[kernel]] void k(device int* o [[buffer(0)]], float i [[thread_index_in_simdgroup]]) { o[0] = i; }"),
    "builtin_vector_type": ("this built-in is a scalar", "attribute", "[[kernel]] void k(device int* o [[buffer(0)]], uint3 i [[thread_index_in_simdgroup]]) { o[0] = i.x; }"),
    "buffer_by_value": ("a buffer is a pointer or a reference", "attribute", "[[kernel]] void k(float x [[buffer(0)]], device float* o [[buffer(1)]]) { o[0] = x; }"),
    "buffer_index": ("the last buffer is 30", "attribute", "[[kernel]] void k(device float* o [[buffer(31)]]) { o[0] = 1; }"),
    "buffer_space": ("a buffer is in device or constant memory", "address-space", "[[kernel]] void k(thread float* o [[buffer(0)]]) { o[0] = 1; }"),
    "opencl_spelling": ("OpenCL's words are not Metal's", "opencl", "void f(__global float* p) { p[0] = 1.0f; }"),
    "compiler_builtin": ("the bench's own names are not Metal's", "builtin", "float f(float x) { return __builtin_expf(x); }"),
    "missing_semicolon": ("a syntax error", "compiler", "float f(float x) { return x }"),
    "wrong_argument_count": ("clamp takes three arguments", "compiler", "float f(float x) { return clamp(x, 0.0f); }"),
    "precise_half": ("precise:: functions take float", "compiler", "half4 f(half4 x) { return precise::exp(x); }"),
    "const_method_writes": ("a const method may not write", "compiler", "struct S { float x; void set() const { x = 1; } };"),
    "int_modulo_float": ("% takes integers", "compiler", "float f(float x) { return x % 2.0f; }"),
    "template_argument": ("a template argument is a constant", "compiler", "template <int N> int g() { return N; } int f(int n) { return g<n>(); }"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_is_rejected(name: str) -> None:
    why, rule, program = PROGRAMS[name]
    found = check_text(PROLOGUE + program + "\n")
    assert found, f"accepted, although {why}"
    assert rule in {d.rule for d in found}, f"{why}: expected rule {rule}, got {[str(d) for d in found]}"
    assert all(d.line >= 3 for d in found), [str(d) for d in found]


def test_there_are_enough() -> None:
    assert len(PROGRAMS) >= 40


def test_a_clean_program_has_no_diagnostics() -> None:
    assert check_text(PROLOGUE + "float f(float x) { return metal::exp(x); }\n") == []
