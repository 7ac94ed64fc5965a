// Text to tokens, over a mapped vocabulary (runtime/text/vocabulary_file.py says what is in it). Merging is what
// runtime/text/piece_merging.py does: of the neighbours that merge, the pair with the lowest rank, and of several the
// first; then again. Cutting is Qwen 3.5's pre-tokenizer, the regular expression in text_pieces.h.
//
// The file is untrusted and may change while it is read: each number from it is compared before it leads anywhere.
#include "text_pieces.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace qwonnx {
namespace {

constexpr uint64_t NEVER = ~0ull;  // the rank of a pair that does not merge
constexpr uint64_t FEW = 48;        // symbols; more are merged with a heap
constexpr uint64_t MANY = 1 << 20;  // symbols of a piece; more would take more than 60 MB
constexpr int64_t DAMAGED = -1, NO_MEMORY = -2, LONG_PIECE = -3;

struct CrcTable {
  uint32_t of[256];
};

constexpr CrcTable crc_table() {
  CrcTable table{};
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0xEDB88320u : value >> 1;
    table.of[i] = value;
  }
  return table;
}

constexpr CrcTable CRC = crc_table();

uint32_t crc32(const uint8_t* bytes, size_t count) {
  uint32_t value = ~0u;
  for (size_t i = 0; i < count; i++) value = value >> 8 ^ CRC.of[(value ^ bytes[i]) & 255];
  return ~value;
}

}  // namespace

// Sections of the file and the numbers of its header. In the order of runtime/native/token_merging.py.
struct Vocabulary {
  const uint32_t* byte_ids;      // [256]
  const uint32_t* starts;        // [num_tokens + 1]
  const uint8_t* text;           // [text_bytes]
  const uint32_t* first_merges;  // [num_tokens + 1]
  const uint32_t* rights;        // [num_merges]
  const uint32_t* ranks;
  const uint32_t* results;
  const uint32_t* slots;         // [num_slots]
  const uint32_t* class_blocks;  // [0x1100], if there are any blocks
  const uint8_t* classes;        // [num_class_blocks, 256]
  uint64_t num_tokens, num_merges, num_slots, max_probes, longest, text_bytes, num_class_blocks;
};

namespace {

// Rank, and the token that two make in the lower half; NEVER if they do not merge. Both are tokens.
uint64_t ranked(const Vocabulary& vocabulary, uint32_t left, uint32_t right) {
  uint64_t first = vocabulary.first_merges[left], last = vocabulary.first_merges[left + 1];
  if (last > vocabulary.num_merges) return NEVER;
  const uint64_t end = last;
  while (first < last) {
    const uint64_t middle = (first + last) / 2;
    if (vocabulary.rights[middle] < right)
      first = middle + 1;
    else
      last = middle;
  }
  if (first >= end || vocabulary.rights[first] != right) return NEVER;
  const uint32_t result = vocabulary.results[first];
  if (result >= vocabulary.num_tokens) return NEVER;
  return static_cast<uint64_t>(vocabulary.ranks[first]) << 32 | result;
}

// The token that a piece is as a whole, if merging reaches it.
bool whole(const Vocabulary& vocabulary, const uint8_t* piece, size_t count, uint32_t& token) {
  if (count > vocabulary.longest) return false;
  const uint64_t place = crc32(piece, count);
  for (uint64_t probe = 0; probe < vocabulary.max_probes; probe++) {
    const uint32_t slot = vocabulary.slots[(place + probe) & (vocabulary.num_slots - 1)];
    if (!slot) return false;
    const uint64_t id = (slot >> 1) - 1ull;
    if (id >= vocabulary.num_tokens) return false;
    const uint64_t start = vocabulary.starts[id], end = vocabulary.starts[id + 1];
    if (end < start || end > vocabulary.text_bytes) return false;
    if (end - start != count || memcmp(vocabulary.text + start, piece, count)) continue;
    token = static_cast<uint32_t>(id);
    return slot & 1;
  }
  return false;
}

// symbols: the tokens of single bytes, which become the merged ones. Returns their number.
size_t merge_few(const Vocabulary& vocabulary, size_t count, uint32_t* symbols) {
  uint64_t pairs[FEW];
  for (size_t i = 0; i + 1 < count; i++) pairs[i] = ranked(vocabulary, symbols[i], symbols[i + 1]);
  while (count > 1) {
    size_t at = 0;
    for (size_t i = 1; i + 1 < count; i++)
      if (pairs[i] < pairs[at]) at = i;
    if (pairs[at] == NEVER) break;
    symbols[at] = static_cast<uint32_t>(pairs[at]);
    count--;
    for (size_t i = at + 1; i < count; i++) symbols[i] = symbols[i + 1];
    for (size_t i = at; i + 1 < count; i++) pairs[i] = pairs[i + 1];
    if (at + 1 < count) pairs[at] = ranked(vocabulary, symbols[at], symbols[at + 1]);
    if (at) pairs[at - 1] = ranked(vocabulary, symbols[at - 1], symbols[at]);
  }
  return count;
}

struct Candidate {
  uint64_t rank;
  uint32_t at;
  bool is_before(const Candidate& other) const { return rank != other.rank ? rank < other.rank : at < other.at; }
};

struct Heap {
  Candidate* items;
  size_t count;

  void push(Candidate item) {
    size_t at = count++;
    for (; at && item.is_before(items[(at - 1) / 2]); at = (at - 1) / 2) items[at] = items[(at - 1) / 2];
    items[at] = item;
  }

  Candidate pop() {
    const Candidate top = items[0], last = items[--count];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
      if (child + 1 < count && items[child + 1].is_before(items[child])) child++;
      if (!items[child].is_before(last)) break;
      items[at] = items[child];
    }
    items[at] = last;
    return top;
  }
};

// The neighbours of a symbol. One that was merged into the symbol before it has itself as the next.
struct Links {
  uint32_t before, after;
};

// The same in time n log n. A pair that is no longer there stays in the heap, and is known by what it would make.
int64_t merge_many(const Vocabulary& vocabulary, uint32_t count, uint32_t* symbols) {
  Links* links = static_cast<Links*>(malloc(count * sizeof(Links)));
  // count - 1 pairs, and at most two more for each of at most count - 1 merges
  Heap heap{static_cast<Candidate*>(malloc(3 * sizeof(Candidate) * count)), 0};
  if (!links || !heap.items) {
    free(links);
    free(heap.items);
    return NO_MEMORY;
  }
  const auto offer = [&](uint32_t left, uint32_t right) {
    const uint64_t rank = ranked(vocabulary, symbols[left], symbols[right]);
    if (rank != NEVER) heap.push({rank, left});
  };
  for (uint32_t i = 0; i < count; i++) links[i] = {i - 1, i + 1};
  for (uint32_t i = 0; i + 1 < count; i++) offer(i, i + 1);
  while (heap.count) {
    const Candidate best = heap.pop();
    Links& here = links[best.at];
    const uint32_t right = here.after;
    if (right == best.at || right == count) continue;
    if (ranked(vocabulary, symbols[best.at], symbols[right]) != best.rank) continue;
    symbols[best.at] = static_cast<uint32_t>(best.rank);
    here.after = links[right].after;
    links[right].after = right;
    if (here.after < count) {
      links[here.after].before = best.at;
      offer(best.at, here.after);
    }
    if (best.at) offer(here.before, best.at);
  }
  size_t made = 0;
  for (uint32_t i = 0; i < count; i = links[i].after) symbols[made++] = symbols[i];
  free(links);
  free(heap.items);
  return static_cast<int64_t>(made);
}

// What the calls for one text share.
struct Merger {
  const Vocabulary& vocabulary;
  uint32_t byte_ids[256];  // copied, so that they stay as they were checked
  uint32_t* tokens;
  uint64_t made;

  bool begin() {
    memcpy(byte_ids, vocabulary.byte_ids, sizeof byte_ids);
    for (uint32_t id : byte_ids)
      if (id >= vocabulary.num_tokens) return false;
    return true;
  }

  // 0, or what is wrong.
  int64_t add(const uint8_t* piece, uint64_t count) {
    uint32_t token;
    if (whole(vocabulary, piece, count, token)) {
      tokens[made++] = token;
      return 0;
    }
    if (count > MANY) return LONG_PIECE;
    uint32_t* symbols = tokens + made;
    for (uint64_t i = 0; i < count; i++) symbols[i] = byte_ids[piece[i]];
    const int64_t found = count <= FEW ? static_cast<int64_t>(merge_few(vocabulary, count, symbols))
                                       : merge_many(vocabulary, static_cast<uint32_t>(count), symbols);
    if (found < 0) return found;
    made += static_cast<uint64_t>(found);
    return 0;
  }
};

}  // namespace
}  // namespace qwonnx

// The tokens of a text's pieces.
//
// text is UTF-8. bounds has two numbers for each piece: its first character and the one after its last, ascending.
// tokens has room for as many tokens as the text has bytes. Returns their number, -1 if the file is damaged or the bounds
// are not those of the text, -2 if there is no memory, -3 if a piece is too long.
EXPORTED int64_t qwonnx_tokens_merge(const qwonnx::Vocabulary* vocabulary, const uint8_t* text, uint64_t text_bytes,
                                     const uint32_t* bounds, uint64_t num_pieces, uint32_t* tokens) {
  qwonnx::Merger merger{*vocabulary, {}, tokens, 0};
  if (!merger.begin()) return qwonnx::DAMAGED;
  uint64_t character = 0, byte = 0;
  const auto walk = [&](uint64_t to) {
    for (; character < to && byte < text_bytes; character++) byte += qwonnx::length_of(text[byte]);
    return character == to && byte <= text_bytes;
  };
  for (uint64_t i = 0; i < num_pieces; i++) {
    if (!walk(bounds[2 * i])) return qwonnx::DAMAGED;
    const uint64_t start = byte;
    if (!walk(bounds[2 * i + 1])) return qwonnx::DAMAGED;
    if (byte == start) continue;
    if (const int64_t wrong = merger.add(text + start, byte - start)) return wrong;
  }
  return static_cast<int64_t>(merger.made);
}

// The tokens of a normalised text, which is cut here. The same as above; the vocabulary must have classes.
EXPORTED int64_t qwonnx_tokens_encode(const qwonnx::Vocabulary* vocabulary, const uint8_t* text, uint64_t text_bytes,
                                      uint32_t* tokens) {
  qwonnx::Merger merger{*vocabulary, {}, tokens, 0};
  if (!merger.begin() || !vocabulary->num_class_blocks) return qwonnx::DAMAGED;
  const qwonnx::TextPieces pieces{text, text_bytes, vocabulary->class_blocks, vocabulary->classes,
                                  vocabulary->num_class_blocks};
  for (uint64_t start = 0; start < text_bytes;) {
    const uint64_t end = pieces.end_of(start);
    if (const int64_t wrong = merger.add(text + start, end - start)) return wrong;
    start = end;
  }
  return static_cast<int64_t>(merger.made);
}
