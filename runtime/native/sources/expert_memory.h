// Which experts of a session lie in memory.
//
// Their weights are mapped files: the system reads a page that is touched, wherever it is. This part knows an expert
// before it is touched. It counts how often each is needed, and under a limit it also asks for the missing ones before
// the first of them is computed, and lets those go that are worth least. Nothing of it changes a result.
#pragma once

#include "operators.h"

namespace qwonnx {

struct ExpertLayer;  // the experts of one node

// A new layer of the memory that collects this thread's new nodes; null if none does, or if there is no memory.
ExpertLayer* join_experts(const Experts& layer);
void leave_experts(ExpertLayer* layer);

// What a layer needs in a step: `used` experts; expert e has the pairs first_pair[e] to first_pair[e + 1].
struct ExpertNeed {
  const size_t* used;
  size_t num_used;
  const size_t* first_pair;
  size_t num_tokens;
};

// Call before the first of the experts is computed.
OrtStatus* need_experts(ExpertLayer& layer, const ExpertNeed& need, const Parallel& parallel);

}  // namespace qwonnx
