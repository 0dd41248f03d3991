// Ill-formed programs. Each begins with "//// name | rule that reports it | why it is ill-formed".

//// pointer_parameter | address-space | a pointer parameter needs an address space
float f(float* p) { return p[0]; }

//// reference_parameter | address-space | a reference parameter needs an address space
void f(float& r) { r = 1.0f; }

//// pointer_result | address-space | a returned pointer needs an address space
float* f(device float* p) { return 0; }

//// pointer_local | address-space | a local pointer needs an address space
void f() { float x = 0; float* p = &x; *p = 1.0f; }

//// pointer_member | address-space | a member pointer needs an address space
struct S { float* p; };

//// pointer_cast | address-space | a pointer cast needs an address space
float f(device float* p) { return ((float*)p)[0]; }

//// template_pointer | address-space | a pointer to a template type needs an address space too
template <typename T> T f(const T* p) { return p[0]; }

//// device_to_thread | compiler | device memory is not thread memory
void f(device float* p) { thread float* q = p; q[0] = 0; }

//// thread_to_device | compiler | thread memory is not device memory
void f() { float x; device float* q = &x; q[0] = 0; }

//// threadgroup_to_device | compiler | threadgroup memory is not device memory
void g(device float* p); void f(threadgroup float* p) { g(p); }

//// constant_to_device | compiler | constant memory is not device memory
void f(constant float* p) { const device float* q = p; }

//// cast_across_spaces | compiler | a C-style cast may not change the address space
void f(constant float* p) { const device float* q = (const device float*)p; }

//// write_constant | compiler | constant memory is read-only
void f(constant float* p) { p[0] = 1.0f; }

//// write_const_device | compiler | a const buffer is read-only
void f(const device float* p) { p[0] = 1.0f; }

//// mutable_global | global | a program-scope variable must be constant
int counter = 0;

//// constexpr_global | global | constexpr alone is not the constant address space
constexpr int N = 4;

//// static_local | static | there are no static variables
int f() { static int n = 0; return ++n; }

//// threadgroup_in_helper | compiler | threadgroup variables live in kernels only
void f() { threadgroup float part[4]; part[0] = 0; }

//// threadgroup_in_inner_scope | compiler | threadgroup variables live in a kernel's outermost scope
[[kernel]] void k(device float* o [[buffer(0)]]) { if (o[0] > 0) { threadgroup float part[4]; part[0] = 0; } }

//// threadgroup_initialiser | compiler | threadgroup variables have no initialiser
[[kernel]] void k(device float* o [[buffer(0)]]) { threadgroup float part = 1.0f; o[0] = part; }

//// threadgroup_global | compiler | threadgroup variables do not live at program scope
threadgroup float part[4];

//// double_variable | double | there is no double
float f() { double x = 1.0; return float(x); }

//// long_long | long-long | there is no long long
long f() { long long x = 1; return x; }

//// float_to_bfloat | bfloat | float does not become bfloat implicitly
bfloat f(float x) { return x; }

//// float_literal_to_bfloat | bfloat | a float literal does not become bfloat
void f() { bfloat x = 1.0f; }

//// float_argument_to_bfloat | bfloat | an argument does not become bfloat
void g(bfloat x); void f(float x) { g(x); }

//// float_store_to_bfloat | bfloat | a store does not narrow to bfloat
void f(device bfloat* p, float x) { p[0] = x; }

//// compound_bfloat | bfloat | compound assignment narrows to bfloat
void f(device bfloat* p, float x) { p[0] += x; }

//// half_to_bfloat | compiler | half does not become bfloat
bfloat f(half x) { return x; }

//// bfloat_times_half | bfloat | bfloat and half do not mix
float f(bfloat a, half b) { return float(a * b); }

//// bfloat_exp | compiler | math functions take no bfloat
float f(bfloat x) { return float(metal::exp(x)); }

//// bfloat_max | compiler | max takes no bfloat
bfloat f(bfloat x, bfloat y) { return metal::max(x, y); }

//// bfloat_simd_sum | compiler | simd functions take no bfloat
bfloat f(bfloat x) { return simd_sum(x); }

//// int4_plus_uint4 | compiler | vectors of different types do not add
int4 f(int4 a, uint4 b) { return a + b; }

//// half4_times_float | compiler | a float scalar does not scale a half vector
half4 f(half4 a, float b) { return a * b; }

//// float4_to_half4 | compiler | vectors do not convert implicitly
half4 f(float4 a) { return a; }

//// float3_to_float4 | compiler | widths differ
float4 f(float3 a) { return a; }

//// constructor_too_long | compiler | a constructor takes exactly its components
float4 f() { return float4(1.0f, 2.0f, 3.0f, 4.0f, 5.0f); }

//// constructor_too_short | compiler | a constructor takes exactly its components
float4 f() { return float4(1.0f, 2.0f); }

//// swizzle_out_of_range | compiler | a float2 has no z
float f(float2 a) { return a.z; }

//// swizzle_written_twice | compiler | a swizzle is written once per component
void f(thread float4& a) { a.xx = float2(1.0f); }

//// ambiguous_max | compiler | max of int and uint is ambiguous
uint f(int a, uint b) { return metal::max(a, b); }

//// ambiguous_min | compiler | min of int and float is ambiguous
float f(int a, float b) { return metal::min(a, b); }

//// vector_condition | compiler | a vector is no condition
float f(float4 a) { if (a) return 1.0f; return 0.0f; }

//// vector_compare_arithmetic | vector-compare | comparing vectors gives bools, not numbers
int4 f(float4 a, float4 b) { return a < b; }

//// as_type_size | compiler | as_type needs equal sizes
half f(float x) { return as_type<half>(x); }

//// function_pointer | compiler | there are no function pointers
float g(float x); void f() { float (*p)(float) = g; p(1.0f); }

//// recursion | recursion | functions may not call themselves
int f(int n) { return n < 2 ? n : f(n - 1) + f(n - 2); }

//// mutual_recursion | recursion | functions may not call each other in a circle
int g(int n); int f(int n) { return n ? g(n - 1) : 0; } int g(int n) { return n ? f(n - 1) : 1; }

//// goto | goto | there is no goto
void f(thread int& n) { again: if (n-- > 0) goto again; }

//// lambda | lambda | there are no lambdas
int f(int n) { auto g = [](int x) { return x + 1; }; return g(n); }

//// virtual_function | compiler | there are no virtual functions
struct S { virtual int f() { return 1; } };

//// exception | keyword | there are no exceptions
void f() { throw 1; }

//// new_expression | keyword | there is no new
void f() { thread int* p = new int; *p = 1; }

//// thread_local_variable | keyword | there is no thread_local
thread_local int n;

//// dynamic_cast | keyword | there is no dynamic_cast
struct A {}; void f(thread A* a) { dynamic_cast<thread A*>(a); }

//// std_namespace | compiler | the library is metal::, not std::
float f(float x) { return std::exp(x); }

//// printf | library | there is no printf
void f() { printf("x"); }

//// variable_length_array | compiler | array lengths are constants
float f(int n) { float a[n]; a[0] = 1; return a[0]; }

//// undeclared | compiler | the name does not exist
float f(float x) { return swish(x); }

//// simd_extra_argument | compiler | simd_sum takes one argument
float f(float x) { return simd_sum(x, 3u); }

//// simd_sum_long | compiler | simd functions take no 64-bit integers
long f(long x) { return simd_sum(x); }

//// simd_and_float | compiler | simd_and takes integers
float f(float x) { return simd_and(x); }

//// barrier_without_flags | compiler | a barrier needs its flags
void f() { threadgroup_barrier(); }

//// barrier_with_number | compiler | flags are mem_flags, not numbers
void f() { threadgroup_barrier(2); }

//// atomic_plain_add | compiler | atomics have no operators
void f(device atomic_uint* p) { *p += 1u; }

//// atomic_order | compiler | only relaxed order exists
void f(device atomic_uint* p) { atomic_fetch_add_explicit(p, 1u, memory_order_seq_cst); }

//// atomic_on_plain | compiler | atomic functions need an atomic object
void f(device uint* p) { atomic_fetch_add_explicit(p, 1u, memory_order_relaxed); }

//// matrix_shape | compiler | a simdgroup_matrix is 8x8
void f() { simdgroup_matrix<float, 16, 16> m; }

//// matrix_element | compiler | a simdgroup_matrix holds floats
void f() { simdgroup_matrix<int, 8, 8> m; }

//// matrix_load_thread | compiler | a matrix is not loaded from thread memory
void f() { float a[64]; simdgroup_float8x8 m; simdgroup_load(m, a, 8); }

//// matrix_load_type | compiler | a matrix is loaded from its own element type
void f(device half* p) { simdgroup_float8x8 m; simdgroup_load(m, p, 8); }

//// method_on_device | method-space | a method called on a device object must be qualified
struct S { float x; float get() const { return x; } }; float f(device S* s) { return s->get(); }

//// method_on_threadgroup | method-space | a method called on a threadgroup object must be qualified
struct S { float x; float get() const device { return x; } float get() const { return x; }
    };float f(threadgroup S* s) { return s->get(); }

//// kernel_result | kernel | a kernel returns void
[[kernel]] int k(device int* o [[buffer(0)]]) { return o[0]; }

//// unknown_attribute | attribute | the attribute does not exist
[[kernel]] void k(device int* o [[buffer(0)]], uint i [[thread_position]]) { o[i] = 1; }

//// missing_attribute | attribute | every kernel parameter needs an attribute
[[kernel]] void k(device int* o [[buffer(0)]], uint i) { o[i] = 1; }

//// duplicate_buffer | attribute | two parameters share a buffer
[[kernel]] void k(const device int* a [[buffer(0)]], device int* o [[buffer(0)]]) { o[0] = a[0]; }

//// duplicate_builtin | attribute | two parameters share a built-in
[[kernel]] void k(device int* o [[buffer(0)]], uint i [[thread_index_in_simdgroup]],
    uint j [[thread_index_in_simdgroup]]) { o[i] = j; }

//// builtin_type | attribute | a built-in is an unsigned integer
[[kernel]] void k(device int* o [[buffer(0)]], float i [[thread_index_in_simdgroup]]) { o[0] = i; }

//// builtin_vector_type | attribute | this built-in is a scalar
[[kernel]] void k(device int* o [[buffer(0)]], uint3 i [[thread_index_in_simdgroup]]) { o[0] = i.x; }

//// buffer_by_value | attribute | a buffer is a pointer or a reference
[[kernel]] void k(float x [[buffer(0)]], device float* o [[buffer(1)]]) { o[0] = x; }

//// buffer_index | attribute | the last buffer is 30
[[kernel]] void k(device float* o [[buffer(31)]]) { o[0] = 1; }

//// buffer_space | address-space | a buffer is in device or constant memory
[[kernel]] void k(thread float* o [[buffer(0)]]) { o[0] = 1; }

//// opencl_spelling | opencl | OpenCL's words are not Metal's
void f(__global float* p) { p[0] = 1.0f; }

//// compiler_builtin | builtin | the bench's own names are not Metal's
float f(float x) { return __builtin_expf(x); }

//// missing_semicolon | compiler | a syntax error
float f(float x) { return x }

//// wrong_argument_count | compiler | clamp takes three arguments
float f(float x) { return clamp(x, 0.0f); }

//// precise_half | compiler | precise:: functions take float
half4 f(half4 x) { return precise::exp(x); }

//// const_method_writes | compiler | a const method may not write
struct S { float x; void set() const { x = 1; } };

//// int_modulo_float | compiler | % takes integers
float f(float x) { return x % 2.0f; }

//// template_argument | compiler | a template argument is a constant
template <int N> int g() { return N; } int f(int n) { return g<n>(); }
