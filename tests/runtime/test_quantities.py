"""Sizes, lengths and rates: strict parsing, readable printing."""

from __future__ import annotations

import pytest

from qwonnx.export.errors import PlanError
from qwonnx.export.planning.machines import BANDWIDTHS, parse_bandwidth
from qwonnx.runtime.errors import QuantityError
from qwonnx.runtime.quantities import bytes_text, parse_bytes, parse_count, parse_tokens, tokens_text

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("10GB", 10**10),
        ("10GiB", 10 << 30),
        ("1.5GB", 1_500_000_000),
        (" 512MB ", 512_000_000),
        ("0.1GB", 100_000_000),
        ("4096B", 4096),
        ("2kB", 2000),
        ("2KiB", 2048),
        ("1TB", 10**12),
        ("10gb", 10**10),
        ("1 gb", 10**9),
        ("8 GiB", 8 << 30),
        ("1.5 gib", 3 << 29),
        ("10", 10),
        ("1000000000", 10**9),
    ],
)
def test_sizes_have_powers_of_1000_or_1024(text: str, num_bytes: int) -> None:
    assert parse_bytes(text, "memory") == num_bytes


@pytest.mark.parametrize(
    "text",
    [
        "GB",
        "-1GB",
        "1e3GB",
        "10,240MB",
        "8,5GB",
        "8.GB",
        "1.5",
        "2 G",
        "2Gi",
        "1ib",
        "1  GB",
        "1\nGB",
        "0GB",
        "0",
        "0.0000001kB",
        "99999999TB",
        "9" * 19,
        "9" * 20,
        "١GB",
        "1GB1",
        "",
    ],
)
def test_other_sizes_are_refused_by_name(text: str) -> None:
    with pytest.raises(QuantityError, match=r"^memory is ") as caught:
        parse_bytes(text, "memory")
    assert "\n" not in str(caught.value)


def test_nothing_is_a_size_where_it_means_something() -> None:
    assert parse_bytes("0", "cache", at_least=0) == parse_bytes("0B", "cache", at_least=0) == 0
    with pytest.raises(QuantityError, match=r"at least 64\.0 MB"):
        parse_bytes("1MB", "memory", at_least=64_000_000)


@pytest.mark.parametrize(
    ("text", "num_tokens"), [("1", 1), ("4096", 4096), ("4k", 4096), ("256k", 262_144), ("1M", 1_048_576)]
)
def test_lengths_are_tokens_or_powers_of_two(text: str, num_tokens: int) -> None:
    assert parse_tokens(text, "context") == num_tokens


@pytest.mark.parametrize("text", ["0", "-1", "4K", "4kk", "1.5k", "k", "", "9999999M", "²", "1 k"])
def test_other_lengths_are_refused_by_name(text: str) -> None:
    with pytest.raises(QuantityError, match=r"^context is "):
        parse_tokens(text, "context")


@pytest.mark.parametrize("text", ["0", "-1", "1.0", "9", "x", ""])
def test_counts_are_whole_numbers_in_range(text: str) -> None:
    assert parse_count("8", "sequences", 8) == 8
    with pytest.raises(QuantityError, match=r"^sequences is .*from 1 to 8"):
        parse_count(text, "sequences", 8)


def test_a_bandwidth_is_a_rate_or_a_machine() -> None:
    assert parse_bandwidth("50GB/s") == 50 * 10**9
    assert parse_bandwidth(" DDR4-2ch ") == BANDWIDTHS["ddr4-2ch"] == 51_200_000_000
    for text in ("50GB", "/s", "50/s", "abacus"):
        with pytest.raises(PlanError, match=r"^bandwidth is "):
            parse_bandwidth(text)


def test_lengths_are_written_as_they_are_read() -> None:
    for text in ("1M", "256k", "33k", "1000", "1"):
        assert tokens_text(parse_tokens(text, "context")) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994_999, "9.99 MB"),
        (9_999_999, "10.0 MB"),
        (99_960_000, "100 MB"),
        (999_600_000, "1.00 GB"),
        (18_471_234_567, "18.5 GB"),
        (1_590_000_000_000, "1.59 TB"),
        (5_000_000_000_000_000, "5000 TB"),
    ],
)
def test_sizes_are_written_with_three_digits(num_bytes: int, text: str) -> None:
    assert bytes_text(num_bytes) == text
