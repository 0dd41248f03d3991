// The experts' activation.
#pragma once
#include <metal_stdlib>
using namespace metal;

// gate sigmoid(alpha gate) (linear + 1), both clamped first.
METAL_FUNC float swiglu(float gate, float linear, float limit, float alpha) {
  gate = metal::min(gate, limit);
  linear = metal::max(metal::min(linear, limit), -limit);
  return gate / (1.0f + metal::exp(-alpha * gate)) * (linear + 1.0f);
}
