"""Random numbers from a seed: those of `numpy.random.Generator(numpy.random.Philox(seed)).random()`.

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), with the key that
numpy's SeedSequence makes of a seed. A token needs one number, so Python is fast enough: a microsecond each.
numpy.random itself would add 14 modules and 7 libraries to every start.
"""

from __future__ import annotations

_32_BITS = 0xFFFF_FFFF
_64_BITS = 0xFFFF_FFFF_FFFF_FFFF

_ROUNDS = 10
_FACTORS = (0xD2E7_470E_E14C_6C93, 0xCA5A_8263_9512_1157)
_WEYL = (0x9E37_79B9_7F4A_7C15, 0xBB67_AE85_84CA_A73B)  # added to the key for each round

# Of SeedSequence, which spreads a seed over a pool of words and makes words of the pool (numpy's NEP 19).
_POOL_WORDS = 4
_INITIAL_A, _FACTOR_A = 0x43B0_D7E5, 0x931E_8875
_INITIAL_B, _FACTOR_B = 0x8B51_F9DD, 0x58F3_8DED
_MIX_LEFT, _MIX_RIGHT = 0xCA01_F9DD, 0x4973_F715


class Philox:
    """One sequence of numbers.

    Args:
        seed: at least 0.
    """

    def __init__(self, seed: int) -> None:
        low, high = _key(seed)
        self._keys = _round_keys(low, high)
        self._counter = 0  # of 256 bits
        self._block: list[int] = []  # 64-bit words of this counter that were not returned yet, the next one last

    def random(self) -> float:
        """The next number in [0, 1)."""
        if not self._block:
            self._counter += 1
            self._block = _block(self._counter, self._keys)[::-1]
        return (self._block.pop() >> 11) * 2.0**-53


def _round_keys(low: int, high: int) -> list[tuple[int, int]]:
    return [(low + turn * _WEYL[0] & _64_BITS, high + turn * _WEYL[1] & _64_BITS) for turn in range(_ROUNDS)]


def _block(counter: int, keys: list[tuple[int, int]]) -> list[int]:
    """Four 64-bit words."""
    first, second, third, fourth = (counter >> shift & _64_BITS for shift in (0, 64, 128, 192))
    low_factor, high_factor = _FACTORS
    for low_key, high_key in keys:
        low, high = first * low_factor, third * high_factor
        first = high >> 64 ^ second ^ low_key
        second = high & _64_BITS
        third = low >> 64 ^ fourth ^ high_key
        fourth = low & _64_BITS
    return [first, second, third, fourth]


class _Hash:
    """A hash of 32-bit words that changes with each word."""

    def __init__(self, constant: int, factor: int) -> None:
        self._constant, self._factor = constant, factor

    def of(self, word: int) -> int:
        word ^= self._constant
        self._constant = self._constant * self._factor & _32_BITS
        word = word * self._constant & _32_BITS
        return word ^ word >> 16


def _key(seed: int) -> tuple[int, int]:
    """SeedSequence(seed).generate_state(2, uint64)."""
    words = [seed >> shift & _32_BITS for shift in range(0, max(1, seed.bit_length()), 32)]
    spread = _Hash(_INITIAL_A, _FACTOR_A)
    pool = [spread.of(word) for word in (words + [0] * _POOL_WORDS)[:_POOL_WORDS]]
    for source in range(_POOL_WORDS):
        for place in range(_POOL_WORDS):
            if place != source:
                pool[place] = _mixed(pool[place], spread.of(pool[source]))
    for word in words[_POOL_WORDS:]:
        pool = [_mixed(mixed, spread.of(word)) for mixed in pool]
    drawn = _Hash(_INITIAL_B, _FACTOR_B)
    first, second, third, fourth = (drawn.of(word) for word in pool)
    return first | second << 32, third | fourth << 32


def _mixed(left: int, right: int) -> int:
    word = _MIX_LEFT * left - _MIX_RIGHT * right & _32_BITS
    return word ^ word >> 16
