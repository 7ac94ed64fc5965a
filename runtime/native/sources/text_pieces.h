// Qwen 3.5's pre-tokenizer: where the pieces of a text end. It is this regular expression, tried at each place:
//
//   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//
// What a character is comes from a table, which the export asked of the library (CharacterClass in
// runtime/text/vocabulary_file.py), so the version of Unicode is the library's.
#pragma once

#include <stdint.h>

namespace qwonnx {

// Bytes of the character that begins with this byte of UTF-8.
inline uint64_t length_of(uint8_t first) { return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4; }

struct TextPieces {
  static constexpr uint8_t WORD = 1, LETTER = 2, NUMBER = 4, SPACE = 8, BREAK = 16;
  static constexpr uint8_t SINGLE = 1, FIRST = 2, E = 3, DOUBLE = 4;  // of a contraction, in the upper three bits

  const uint8_t* text;  // UTF-8
  uint64_t size;
  const uint32_t* blocks;
  const uint8_t* classes;
  uint64_t num_blocks;

  struct Character {
    uint8_t is;
    uint64_t end;

    bool any(uint8_t bits) const { return is & bits; }
    uint8_t contracts() const { return is >> 5; }
  };

  // The end of the piece that starts here, in front of the text's end.
  uint64_t end_of(uint64_t start) const {
    const Character first = at(start);
    if (text[start] == '\'')
      if (const uint64_t end = contraction(first.end)) return end;
    if (!first.any(BREAK | LETTER | NUMBER) && first.end < size && at(first.end).any(WORD)) return run(first.end, WORD);
    if (first.any(WORD)) return run(start, WORD);
    if (first.any(NUMBER)) return first.end;
    const uint64_t other = text[start] == ' ' ? first.end : start;
    if (other < size && !at(other).any(SPACE | WORD | NUMBER)) return run(others(other), BREAK);
    return spaces(start);
  }

 private:
  // Bytes that are not UTF-8 are read as some character, never beyond the end.
  Character at(uint64_t place) const {
    const uint8_t first = text[place];
    uint64_t end = place + length_of(first);
    uint32_t code = first;
    if (first >= 0x80) {
      if (end > size) end = size;
      code = first < 0xE0 ? first & 31 : first < 0xF0 ? first & 15 : first & 7;
      for (uint64_t i = place + 1; i < end; i++) code = code << 6 | (text[i] & 63);
    }
    if (code > 0x10FFFF) return {0, end};
    const uint32_t block = blocks[code >> 8];
    return {block < num_blocks ? classes[static_cast<uint64_t>(block) << 8 | (code & 255)] : uint8_t{0}, end};
  }

  uint64_t run(uint64_t place, uint8_t bits) const {
    while (place < size) {
      const Character next = at(place);
      if (!next.any(bits)) break;
      place = next.end;
    }
    return place;
  }

  uint64_t others(uint64_t place) const {
    while (place < size) {
      const Character next = at(place);
      if (next.any(SPACE | WORD | NUMBER)) break;
      place = next.end;
    }
    return place;
  }

  // The end of what follows an apostrophe, 0 if it is no contraction.
  uint64_t contraction(uint64_t place) const {
    if (place >= size) return 0;
    const Character first = at(place);
    if (first.contracts() == SINGLE) return first.end;
    if (first.end >= size) return 0;
    const Character second = at(first.end);
    const bool is_pair = (first.contracts() == FIRST && second.contracts() == E) ||
                         (first.contracts() == DOUBLE && second.contracts() == DOUBLE);
    return is_pair ? second.end : 0;
  }

  // White space: up to its last line break; without one all at the text's end, else all but the last character, if that
  // is not the only one.
  uint64_t spaces(uint64_t start) const {
    uint64_t place = start, last = start, after_break = 0;
    while (place < size) {
      const Character next = at(place);
      if (!next.any(SPACE)) break;
      if (next.any(BREAK)) after_break = next.end;
      last = place;
      place = next.end;
    }
    if (after_break) return after_break;
    if (place == start) return at(start).end;  // a table that contradicts itself
    return place == size || last == start ? place : last;
  }
};

}  // namespace qwonnx
