// Rows of activations as the products take them: quantised by block to int8, or the floats themselves.
#pragma once

#include "blocks.h"
#include "scratch.h"

namespace qwonnx {

// Whether rows of activations for one matrix serve the other one too.
static inline bool alike(const Blocks& a, const Blocks& b) {
  return a.bits == b.bits && a.block == b.block && a.columns == b.columns;
}

class Rows {
 public:
  // For products with matrices of the width, bits and blocks of `weights`.
  Rows(const Blocks& weights, size_t count, bool int8) : weights_(weights), count_(count), int8_(int8) {}

  // Both in the order of Scratch: reserve() of every user, allocate(), take() of every user.
  void reserve(Scratch& scratch) const {
    scratch.reserve(count_, sizeof(Activations));
    if (!int8_) return;
    scratch.reserve(count_, activation_bytes(weights_.columns));
    for (int i = 0; i < 2; i++) scratch.reserve(count_, weights_.num_blocks() * sizeof(float));
  }
  void take(Scratch& scratch) {
    activations_ = scratch.take<Activations>(count_);
    if (!int8_) return;
    codes_ = scratch.take<uint8_t>(count_ * activation_bytes(weights_.columns));
    scales_ = scratch.take<float>(count_ * weights_.num_blocks());
    sums_ = scratch.take<float>(count_ * weights_.num_blocks());
  }

  // Row number `index` becomes x [columns], which must stay where it is.
  void set(size_t index, const float* x, const InstructionSet& set) const {
    if (!int8_) {
      activations_[index] = {x, nullptr, nullptr};
      return;
    }
    uint8_t* codes = codes_ + index * activation_bytes(weights_.columns);
    float *scales = scales_ + index * weights_.num_blocks(), *sums = sums_ + index * weights_.num_blocks();
    set.quantize(x, weights_, codes, scales, sums);
    activations_[index] = {codes, scales, sums};
  }

  const Activations* activations() const { return activations_; }

 private:
  const Blocks& weights_;
  const size_t count_;
  const bool int8_;
  Activations* activations_ = nullptr;
  uint8_t* codes_ = nullptr;
  float* scales_ = nullptr;
  float* sums_ = nullptr;
};

}  // namespace qwonnx
