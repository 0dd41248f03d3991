// Metal Shading Language on clang's C++ for OpenCL: everything a kernel may name, in dependency order.
#pragma once
#include "types.h"
#include "runtime_calls.h"
#include "math.h"
#include "integer.h"
#include "simd.h"
#include "matrix.h"
#include "atomic.h"
#include "vocabulary.h"
