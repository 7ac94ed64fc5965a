// Scalar functions that would otherwise come from libm, which the library does not link.
#pragma once

#include <stdint.h>
#include <string.h>

namespace qwonnx {

static inline float magnitude(float x) { return x < 0 ? -x : x; }

// Nearest, ties to even; for magnitudes below 2 ** 22.
static inline float nearest(float x) {
  const volatile float shifted = x + 12582912.0f;  // volatile: no compiler may cancel the two terms
  return shifted - 12582912.0f;
}

// exp(x), relative error 2e-7: 2 ** n times a polynomial on [-ln 2 / 2, ln 2 / 2].
static inline float exponential(float x) {
  if (x != x) return x;
  x = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
  const float n = nearest(x * 1.44269504f);
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

}  // namespace qwonnx
