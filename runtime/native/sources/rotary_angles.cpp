// The arithmetic of rotary angles: a reduction to a quarter turn in double precision, then a polynomial.
#include "rotary_angles.h"

namespace qwonnx {
namespace {

constexpr size_t TOKENS = 32;  // of a task

struct Turn {
  double cos, sin;
};

// pi / 2 in three parts, of which the first two times a quarter of 2 ** 31 turns are exact: an angle of a million radians
// loses nothing.
Turn turn(float angle) {
  constexpr double HIGH = 0x1.921fbp0, MIDDLE = 0x5.4442p-24, LOW = 0xd.18469898cc517p-44, PER_RADIAN = 0.63661977236758134;
  const double x = angle;
  if (!(x < 2147483648.0 && x > -2147483648.0)) return {__builtin_nan(""), __builtin_nan("")};
  const int64_t quarter = static_cast<int64_t>(x * PER_RADIAN + (x < 0 ? -0.5 : 0.5));
  const double q = static_cast<double>(quarter), r = x - q * HIGH - q * MIDDLE - q * LOW, s = r * r;
  // Taylor: for a quarter turn at most, the next terms are below 1e-12.
  const double sin = r * (1 + s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880 + s * (-1.0 / 39916800))))));
  const double cos =
      1 + s * (-1.0 / 2 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 + s * (-1.0 / 3628800 + s * (1.0 / 479001600))))));
  switch (quarter & 3) {
    case 0: return {cos, sin};
    case 1: return {-sin, cos};
    case 2: return {-cos, -sin};
    default: return {sin, -cos};
  }
}

void turn_tokens(void* data, size_t index) {
  const RotaryAngles& step = *static_cast<const RotaryAngles*>(data);
  const size_t first = index * TOKENS, last = step.num_tokens - first < TOKENS ? step.num_tokens : first + TOKENS;
  for (size_t t = first; t < last; t++) {
    const float position[3] = {static_cast<float>(step.positions[t]), static_cast<float>(step.positions[step.num_tokens + t]),
                               static_cast<float>(step.positions[2 * step.num_tokens + t])};
    for (size_t i = 0; i < step.half; i++) {
      float angle = 0;
      for (size_t axis = 0; axis < 3; axis++) {
        const float product = position[axis] * step.frequencies[i];
        angle += product * step.axes[axis * step.half + i];
      }
      const Turn of = turn(angle);
      step.cos[t * step.half + i] = static_cast<float>(of.cos) * step.factor;
      step.sin[t * step.half + i] = static_cast<float>(of.sin) * step.factor;
    }
  }
}

}  // namespace

OrtStatus* rotary_angles(const RotaryAngles& step, const Parallel& parallel) {
  RotaryAngles copy = step;
  return parallel.run_if_many(turn_tokens, (step.num_tokens + TOKENS - 1) / TOKENS, 4, &copy);
}

}  // namespace qwonnx
