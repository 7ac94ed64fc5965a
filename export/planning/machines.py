"""Memory and disk of well-known deployment targets, and the bandwidth of well-known memories."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwonnx.export.errors import PlanError
from qwonnx.runtime.errors import QuantityError
from qwonnx.runtime.quantities import parse_bytes


@dataclass(frozen=True, slots=True)
class DeploymentTarget:
    """A machine with main memory and disk, or `num_devices` accelerators that share a model's layers."""

    name: str
    memory: int  # bytes, of each device
    disk: int | None  # bytes for the artifact; None: no limit
    num_devices: int = 0  # 0: main memory


# Lambda's largest function: 10,240 MiB of memory, and as much under /tmp; an image may have 10 GB. Makers of
# accelerators count GB in powers of 1024, and we in powers of 1000: driver and context take the difference.
DEPLOYMENT_TARGETS = (
    DeploymentTarget("AWS Lambda, 10 GB", 10_240 << 20, 10 * 10**9),
    DeploymentTarget("container, 32 GB", 32 * 10**9, None),
    *(
        DeploymentTarget(f"{count} x {size} GB accelerator", size * 10**9, None, count)
        for count in (1, 2, 4, 8)
        for size in (24, 48, 80, 141)
    ),
)

# Peak bandwidth in bytes a second. Main memory: channels x transfers a second x 8 bytes; accelerators: as published.
BANDWIDTHS = {
    "ddr4-2ch": 51_200_000_000,  # two channels of DDR4-3200: a desktop, a small server
    "ddr5-2ch": 89_600_000_000,  # two channels of DDR5-5600
    "ddr5-8ch": 307_200_000_000,  # eight channels of DDR5-4800: a server's socket
    "ddr5-12ch": 460_800_000_000,  # twelve channels of DDR5-4800
    "m4-max": 546_000_000_000,
    "m3-ultra": 819_000_000_000,
    "l40s": 864_000_000_000,
    "rtx-4090": 1_008_000_000_000,
    "a100-80gb": 2_039_000_000_000,
    "h100": 3_350_000_000_000,
    "h200": 4_800_000_000_000,
}


def parse_bandwidth(text: str) -> int:
    """Bytes a second of "50GB/s", or of a machine by its name.

    Raises:
        PlanError: it is neither.
    """
    named = BANDWIDTHS.get(text.strip().lower())
    if named is not None:
        return named
    if not re.fullmatch(r".*[a-z]/s", text.strip(), re.IGNORECASE):
        raise PlanError(f"bandwidth is {text[:40]!r}: give a rate as in 50GB/s, or one of {', '.join(BANDWIDTHS)}")
    try:
        return parse_bytes(text.strip().removesuffix("/s"), "bandwidth")
    except QuantityError as error:
        raise PlanError(str(error)) from error
