// Relaxed atomics. Lanes run one at a time, so plain reads and writes are already atomic.
#pragma once

enum memory_order { memory_order_relaxed };

namespace metal {

template <class T>
struct atomic {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || is_same<T, bool>::value, "atomic<T> of 4 or 8 bytes");
  T msl_value;
};

// Tells the checked build that the accesses in its scope are atomic.
struct msl_atomic_scope {
#ifdef MSL_CHECKED
  msl_atomic_scope() { msl_atomic(1); }
  ~msl_atomic_scope() { msl_atomic(0); }
#endif
};

#define MSL_FETCH(SPACE, NAME, EXPR)                                                                        \
  template <class T>                                                                                        \
  inline T atomic_fetch_##NAME##_explicit(volatile SPACE atomic<T>* object, T operand, memory_order) {      \
    const msl_atomic_scope scope = {};                                                                      \
    const T value = object->msl_value;                                                                      \
    object->msl_value = (T)(EXPR);                                                                          \
    return value;                                                                                           \
  }
#define MSL_ATOMICS(SPACE)                                                                                  \
  template <class T>                                                                                        \
  inline T atomic_load_explicit(const volatile SPACE atomic<T>* object, memory_order) {                     \
    const msl_atomic_scope scope = {};                                                                      \
    return object->msl_value;                                                                               \
  }                                                                                                         \
  template <class T>                                                                                        \
  inline void atomic_store_explicit(volatile SPACE atomic<T>* object, T desired, memory_order) {            \
    const msl_atomic_scope scope = {};                                                                      \
    object->msl_value = desired;                                                                            \
  }                                                                                                         \
  template <class T>                                                                                        \
  inline T atomic_exchange_explicit(volatile SPACE atomic<T>* object, T desired, memory_order) {            \
    const msl_atomic_scope scope = {};                                                                      \
    const T value = object->msl_value;                                                                      \
    object->msl_value = desired;                                                                            \
    return value;                                                                                           \
  }                                                                                                         \
  template <class T>                                                                                        \
  inline bool atomic_compare_exchange_weak_explicit(volatile SPACE atomic<T>* object, __private T* expected, \
                                                    T desired, memory_order, memory_order) {                \
    const msl_atomic_scope scope = {};                                                                      \
    const T value = object->msl_value;                                                                      \
    if (value != *expected) { *expected = value; return false; }                                            \
    object->msl_value = desired;                                                                            \
    return true;                                                                                            \
  }                                                                                                         \
  MSL_FETCH(SPACE, add, value + operand)                                                                    \
  MSL_FETCH(SPACE, sub, value - operand)                                                                    \
  MSL_FETCH(SPACE, and, value & operand)                                                                    \
  MSL_FETCH(SPACE, or, value | operand)                                                                     \
  MSL_FETCH(SPACE, xor, value ^ operand)                                                                    \
  MSL_FETCH(SPACE, min, metal::min(value, operand))                                                         \
  MSL_FETCH(SPACE, max, metal::max(value, operand))
MSL_ATOMICS(__global)
MSL_ATOMICS(__local)
#undef MSL_ATOMICS
#undef MSL_FETCH

}  // namespace metal
