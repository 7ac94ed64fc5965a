#include "expert_memory.h"

#include "paging.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

namespace qwonnx {

struct ExpertMemory;

// One expert of one layer. Its worth is how often it was needed, where a token counts half as much as one that is
// HALF_LIFE tokens younger.
struct Expert {
  double worth;
  uint64_t uses;       // pairs of a token and this expert
  uint64_t needed_in;  // the last call that needed it
  bool counted;        // its bytes are in `resident_bytes`
};

struct Part {
  const uint8_t* first;  // of expert 0; the others follow
  size_t bytes;          // of one expert
};

constexpr size_t MAX_PARTS = 6;
constexpr double HALF_LIFE = 256;
constexpr double LARGE = 1e100;

struct ExpertLayer {
  ExpertMemory* memory;
  ExpertLayer* next;
  Part parts[MAX_PARTS];
  size_t num_parts, num_experts, bytes;  // bytes of one expert
  Expert* experts;
  bool is_left;  // the node was destroyed
};

struct Place {
  ExpertLayer* layer;
  size_t expert;
};

struct ExpertMemory {
  size_t references;  // nodes, and the one who began it
  bool is_taken;      // a lock
  ExpertLayer* first;
  ExpertLayer* last;
  size_t num_layers;
  uint64_t limit;  // bytes of experts; 0: none
  bool can_ask;    // the system tells what is in memory
  double now;      // the worth of a use; grows, so that older uses shrink beside it
  uint64_t calls;
  uint64_t resident_bytes, most_resident_bytes;
  uint64_t needed, read, read_bytes, dropped;
};

namespace {

thread_local ExpertMemory* collecting = nullptr;

class Lock {
 public:
  explicit Lock(ExpertMemory& memory) : memory_(memory) {
    while (__atomic_exchange_n(&memory_.is_taken, true, __ATOMIC_ACQUIRE)) sched_yield();
  }
  ~Lock() { __atomic_store_n(&memory_.is_taken, false, __ATOMIC_RELEASE); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  ExpertMemory& memory_;
};

void release(ExpertMemory* memory) {
  if (__atomic_sub_fetch(&memory->references, 1, __ATOMIC_ACQ_REL)) return;
  for (ExpertLayer* layer = memory->first; layer;) {
    ExpertLayer* next = layer->next;
    free(layer->experts);
    free(layer);
    layer = next;
  }
  free(memory);
}

void add_parts(ExpertLayer& layer, const Blocks& weights) {
  const auto add = [&layer](const void* first, size_t bytes) {
    layer.parts[layer.num_parts++] = {static_cast<const uint8_t*>(first), bytes};
    layer.bytes += bytes;
  };
  add(weights.codes, weights.rows * weights.row_bytes());
  add(weights.scales, weights.rows * weights.num_blocks() * sizeof(float));
  if (weights.zero_points) add(weights.zero_points, weights.rows * weights.zero_point_bytes());
}

const uint8_t* begin_of(const Part& part, size_t expert) { return part.first + expert * part.bytes; }

// Tells the system something of every part of an expert.
void tell(const Place& place, void (*call)(const void* begin, size_t bytes)) {
  for (size_t i = 0; i < place.layer->num_parts; i++) {
    const Part& part = place.layer->parts[i];
    call(begin_of(part, place.expert), part.bytes);
  }
}

bool is_there(const Place& place) {
  for (size_t i = 0; i < place.layer->num_parts; i++) {
    const Part& part = place.layer->parts[i];
    if (!is_in_memory(begin_of(part, place.expert), part.bytes)) return false;
  }
  return true;
}

void advance(ExpertMemory& memory, size_t num_tokens) {
  // 2 ** (num_tokens / HALF_LIFE) over all layers of a step, for so few tokens that the first terms are enough
  double share = static_cast<double>(num_tokens) / HALF_LIFE / static_cast<double>(memory.num_layers);
  if (share > 4) share = 4;
  const double exponent = share * 0.6931471805599453;
  memory.now *= 1 + exponent * (1 + exponent / 2 * (1 + exponent / 3 * (1 + exponent / 4)));
  if (memory.now < LARGE) return;
  memory.now /= LARGE;
  for (ExpertLayer* layer = memory.first; layer; layer = layer->next)
    for (size_t e = 0; e < layer->num_experts; e++) layer->experts[e].worth /= LARGE;
}

void count(ExpertLayer& layer, const ExpertNeed& need) {
  ExpertMemory& memory = *layer.memory;
  memory.calls++;
  memory.needed += need.num_used;
  advance(memory, need.num_tokens);
  for (size_t u = 0; u < need.num_used; u++) {
    const size_t e = need.used[u];
    Expert& expert = layer.experts[e];
    const size_t pairs = need.first_pair[e + 1] - need.first_pair[e];
    expert.uses += pairs;
    expert.worth += memory.now * static_cast<double>(pairs);
    expert.needed_in = memory.calls;
  }
}

// The expert of the least (or, of those outside memory, of the most) worth. A null layer: there is none.
Place least_in_memory(ExpertMemory& memory) {
  Place found = {nullptr, 0};
  double least = 0;
  for (ExpertLayer* layer = memory.first; layer; layer = layer->next)
    for (size_t e = 0; e < layer->num_experts; e++) {
      const Expert& expert = layer->experts[e];
      if (!expert.counted || expert.needed_in == memory.calls || (found.layer && expert.worth >= least)) continue;
      found = {layer, e};
      least = expert.worth;
    }
  return found;
}

Place most_outside(ExpertMemory& memory) {
  Place found = {nullptr, 0};
  double most = 0;
  for (ExpertLayer* layer = memory.first; layer; layer = layer->next)
    for (size_t e = 0; e < layer->num_experts; e++) {
      const Expert& expert = layer->experts[e];
      if (layer->is_left || expert.counted || (found.layer && expert.worth <= most)) continue;
      if (memory.resident_bytes + layer->bytes > memory.limit) continue;
      found = {layer, e};
      most = expert.worth;
    }
  return found;
}

void count_in(ExpertMemory& memory, const Place& place) {
  place.layer->experts[place.expert].counted = true;
  memory.resident_bytes += place.layer->bytes;
  if (memory.resident_bytes > memory.most_resident_bytes) memory.most_resident_bytes = memory.resident_bytes;
}

void count_read(ExpertMemory& memory, const Place& place) {
  memory.read++;
  memory.read_bytes += place.layer->bytes;
}

void count_out(ExpertMemory& memory, const Place& place) {
  place.layer->experts[place.expert].counted = false;
  memory.resident_bytes -= place.layer->bytes;
  memory.dropped++;
}

// What must come and what goes for it. One piece of work asks for one expert and lets its share of the others go: so
// the bytes in memory stay near the limit, and the system reads while this thread drops pages.
struct Exchange {
  const Place* coming;
  size_t num_coming;
  const Place* going;
  size_t num_going;
};

void exchange_one(void* data, size_t index) {
  const Exchange& exchange = *static_cast<Exchange*>(data);
  if (index < exchange.num_coming) tell(exchange.coming[index], read_ahead);
  const size_t pieces = exchange.num_coming ? exchange.num_coming : 1;
  for (size_t i = index * exchange.num_going / pieces; i < (index + 1) * exchange.num_going / pieces; i++)
    tell(exchange.going[i], let_go);
}

struct Places {
  Place* places = nullptr;
  size_t count = 0, room = 0;

  ~Places() { free(places); }
  bool add(const Place& place) {
    if (count == room) {
      room = room ? 2 * room : 64;
      void* more = realloc(places, room * sizeof(Place));
      if (!more) return false;
      places = static_cast<Place*>(more);
    }
    places[count++] = place;
    return true;
  }
};

// Marks what goes until the limit is kept. Without memory for the list, the rest goes the next time.
void make_room(ExpertMemory& memory, Places& going) {
  while (memory.resident_bytes > memory.limit) {
    const Place place = least_in_memory(memory);
    if (!place.layer || !going.add(place)) return;
    count_out(memory, place);
  }
}

// What comes and goes for some experts of one layer. The memory is locked.
void exchange_for(ExpertLayer& layer, const size_t* experts, size_t count, Places& coming, Places& going) {
  ExpertMemory& memory = *layer.memory;
  for (size_t i = 0; i < count; i++) {
    const Place place = {&layer, experts[i]};
    const bool counted = layer.experts[experts[i]].counted;
    // What is counted may have been dropped by the system.
    if (counted && (!memory.can_ask || is_there(place))) continue;
    if (!counted) count_in(memory, place);
    if (!coming.add(place)) break;
    count_read(memory, place);
  }
  make_room(memory, going);
}

// From now on there is a limit: experts that were used before it lie in memory.
void begin_to_count(ExpertLayer& layer) {
  ExpertMemory& memory = *layer.memory;
  for (size_t i = 0; i < layer.num_parts; i++)
    expect_no_order(layer.parts[i].first, layer.parts[i].bytes * layer.num_experts);
  for (size_t e = 0; e < layer.num_experts; e++) {
    if (!layer.experts[e].uses || layer.experts[e].counted || (memory.can_ask && !is_there({&layer, e}))) continue;
    count_in(memory, {&layer, e});
  }
}

}  // namespace

ExpertLayer* join_experts(const Experts& layer) {
  ExpertMemory* memory = collecting;
  if (!memory) return nullptr;
  ExpertLayer* made = static_cast<ExpertLayer*>(calloc(1, sizeof(ExpertLayer)));
  Expert* experts = static_cast<Expert*>(calloc(layer.num_experts, sizeof(Expert)));
  if (!made || !experts) {
    free(made);
    free(experts);
    return nullptr;
  }
  made->memory = memory;
  made->experts = experts;
  made->num_experts = layer.num_experts;
  // Of experts that nobody used yet, some of each layer are worth a little more than the others of all layers.
  for (size_t e = 0; e < layer.num_experts; e++)
    experts[e].worth = 1e-12 * static_cast<double>(static_cast<uint32_t>(e) * 2654435761u);
  add_parts(*made, layer.gate_up);
  add_parts(*made, layer.down);
  Lock lock(*memory);
  __atomic_add_fetch(&memory->references, 1, __ATOMIC_ACQ_REL);
  (memory->last ? memory->last->next : memory->first) = made;
  memory->last = made;
  memory->num_layers++;
  return made;
}

void leave_experts(ExpertLayer* layer) {
  if (!layer) return;
  ExpertMemory* memory = layer->memory;
  {
    Lock lock(*memory);
    layer->is_left = true;
    for (size_t e = 0; e < layer->num_experts; e++)
      if (layer->experts[e].counted) count_out(*memory, {layer, e});
  }
  release(memory);
}

OrtStatus* need_experts(ExpertLayer& layer, const ExpertNeed& need, const Parallel& parallel) {
  ExpertMemory& memory = *layer.memory;
  Places coming, going;
  {
    Lock lock(memory);
    count(layer, need);
    if (!memory.limit) return nullptr;
    exchange_for(layer, need.used, need.num_used, coming, going);
  }
  if (!coming.count && !going.count) return nullptr;
  Exchange exchange = {coming.places, coming.count, going.places, going.count};
  return parallel.run(exchange_one, coming.count ? coming.count : 1, &exchange);
}

}  // namespace qwonnx

#define EXPORTED extern "C" __attribute__((visibility("default")))

using qwonnx::ExpertLayer;
using qwonnx::ExpertMemory;

// Null: there is no memory.
EXPORTED void* qwonnx_experts_new() {
  ExpertMemory* memory = static_cast<ExpertMemory*>(calloc(1, sizeof(ExpertMemory)));
  if (!memory) return nullptr;
  memory->references = 1;
  memory->now = 1;
  return memory;
}

// The nodes that this thread creates from now on belong to a memory; null: to none.
EXPORTED void qwonnx_experts_collect(void* memory) { qwonnx::collecting = static_cast<ExpertMemory*>(memory); }

EXPORTED void qwonnx_experts_release(void* memory) { qwonnx::release(static_cast<ExpertMemory*>(memory)); }

EXPORTED size_t qwonnx_experts_num_layers(void* memory) { return static_cast<ExpertMemory*>(memory)->num_layers; }

static ExpertLayer* layer_of(void* data, size_t index) {
  ExpertLayer* layer = static_cast<ExpertMemory*>(data)->first;
  while (index-- && layer) layer = layer->next;
  return layer;
}

// numbers: experts, bytes of one, parts; then for each part the address of expert 0 and the bytes of one.
EXPORTED void qwonnx_experts_layer(void* memory, size_t index, uint64_t numbers[3 + 2 * qwonnx::MAX_PARTS]) {
  const ExpertLayer* layer = layer_of(memory, index);
  if (!layer) return;
  numbers[0] = layer->num_experts;
  numbers[1] = layer->bytes;
  numbers[2] = layer->num_parts;
  for (size_t i = 0; i < layer->num_parts; i++) {
    numbers[3 + 2 * i] = reinterpret_cast<uint64_t>(layer->parts[i].first);
    numbers[4 + 2 * i] = layer->parts[i].bytes;
  }
}

// How many pairs of a token and an expert there were, by expert.
EXPORTED void qwonnx_experts_uses(void* memory, size_t index, uint64_t* uses) {
  const ExpertLayer* layer = layer_of(memory, index);
  qwonnx::Lock lock(*static_cast<ExpertMemory*>(memory));
  for (size_t e = 0; layer && e < layer->num_experts; e++) uses[e] = layer->experts[e].uses;
}

// Starts from known frequencies: the share of tokens that need each expert of a layer.
EXPORTED void qwonnx_experts_expect(void* data, size_t index, const double* shares) {
  ExpertMemory& memory = *static_cast<ExpertMemory*>(data);
  ExpertLayer* layer = layer_of(data, index);
  qwonnx::Lock lock(memory);
  // the worth of an expert that has been needed with this share for ever
  for (size_t e = 0; layer && e < layer->num_experts; e++)
    layer->experts[e].worth = memory.now * shares[e] * qwonnx::HALF_LIFE / 0.6931471805599453;
}

// Keeps experts below so many bytes; 0: no limit. can_ask: the process owns the files or may write them, so the system
// tells what lies in memory. 0: this system cannot do it.
EXPORTED int qwonnx_experts_limit(void* data, uint64_t limit, int can_ask) {
  if (!qwonnx::can_page()) return limit == 0;
  ExpertMemory& memory = *static_cast<ExpertMemory*>(data);
  qwonnx::Places going;
  {
    qwonnx::Lock lock(memory);
    memory.can_ask = can_ask;
    if (limit && !memory.limit)
      for (ExpertLayer* layer = memory.first; layer; layer = layer->next)
        if (!layer->is_left) qwonnx::begin_to_count(*layer);
    memory.limit = limit;
    memory.calls++;  // nothing counts as needed now
    if (limit) qwonnx::make_room(memory, going);
  }
  for (size_t i = 0; i < going.count; i++) qwonnx::tell(going.places[i], qwonnx::let_go);
  return 1;
}

// Reads the expert that is worth most among those outside memory, and waits for it. 0: no other one fits.
EXPORTED int qwonnx_experts_fill(void* data) {
  ExpertMemory& memory = *static_cast<ExpertMemory*>(data);
  qwonnx::Place place;
  {
    qwonnx::Lock lock(memory);
    place = qwonnx::most_outside(memory);
    if (!place.layer) return 0;
    qwonnx::count_in(memory, place);
    qwonnx::count_read(memory, place);
  }
  // One at a time: a request that needs an expert meanwhile must not wait for a queue of others.
  qwonnx::tell(place, qwonnx::read_ahead);
  qwonnx::tell(place, qwonnx::map_now);
  return 1;
}

// numbers: limit, bytes counted now, the most there were; experts needed, read, let go; bytes read; layers.
EXPORTED void qwonnx_experts_account(void* data, uint64_t numbers[8]) {
  ExpertMemory& memory = *static_cast<ExpertMemory*>(data);
  qwonnx::Lock lock(memory);
  const uint64_t all[8] = {memory.limit, memory.resident_bytes, memory.most_resident_bytes, memory.needed,
                           memory.read,  memory.dropped,        memory.read_bytes,          memory.num_layers};
  memcpy(numbers, all, sizeof all);
}
