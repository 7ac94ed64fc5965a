"""Memory and disk of well-known machines, memory of well-known cards, and the bandwidth of both."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwonnx.export.errors import PlanError
from qwonnx.runtime.errors import QuantityError
from qwonnx.runtime.quantities import parse_bytes


@dataclass(frozen=True, slots=True)
class DeploymentTarget:
    """A machine with main memory, or a card."""

    name: str
    memory: int  # bytes
    disk: int | None = None  # bytes for the artifact; None: no limit
    bandwidth: int | None = None  # of its memory, in bytes a second, if it is known


# What a function's package has besides the artifact, at most: the tree of a server (tests/infra/shipping holds it), and
# an image with Python below it (a slim image of Python takes up to 150 MB).
SERVER_BYTES = 125_000_000
IMAGE_BYTES = SERVER_BYTES + 150_000_000

# The largest instance of each platform, by the name for `--fit platform=`. Sources:
#   docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: memory of 10,240 MB, an image of 10 GB
#     uncompressed, a zip of 250 MB (262,144,000 bytes) unzipped with layers. Managed Instances are machines: memory=.
#   docs.cloud.google.com/run/docs/configuring/services/memory-limits: 32 GiB with 8 CPUs; an image has no limit.
#   docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html: memory of 6,144 MB, an image of 10 GB.
PLATFORMS = {
    "lambda": DeploymentTarget("AWS Lambda, 10 GB", 10_240 << 20, 10 * 10**9 - IMAGE_BYTES),
    "lambda-zip": DeploymentTarget("AWS Lambda, zip", 10_240 << 20, 262_144_000 - SERVER_BYTES),
    "sagemaker-serverless": DeploymentTarget("SageMaker serverless", 6_144 << 20, 10 * 10**9 - IMAGE_BYTES),
    "cloud-run": DeploymentTarget("Cloud Run, 32 GiB", 32 << 30),
}
HOSTS = (
    PLATFORMS["lambda"],
    PLATFORMS["sagemaker-serverless"],
    PLATFORMS["cloud-run"],
    DeploymentTarget("container, 32 GB", 32 * 10**9),
)

# Bandwidths as published. Makers count GB in powers of 1024, and we in powers of 1000: error correction of some cards
# takes the difference.
CARDS = (
    DeploymentTarget("T4, 16 GB", 16 * 10**9, bandwidth=320_000_000_000),
    DeploymentTarget("RTX 4060 Ti, 16 GB", 16 * 10**9, bandwidth=288_000_000_000),
    DeploymentTarget("RTX 4090, 24 GB", 24 * 10**9, bandwidth=1_008_000_000_000),
    DeploymentTarget("L40S, 48 GB", 48 * 10**9, bandwidth=864_000_000_000),
    DeploymentTarget("A100, 80 GB", 80 * 10**9, bandwidth=2_039_000_000_000),
    DeploymentTarget("H100, 80 GB", 80 * 10**9, bandwidth=3_350_000_000_000),
    DeploymentTarget("RTX PRO 6000, 96 GB", 96 * 10**9, bandwidth=1_792_000_000_000),
    DeploymentTarget("H200, 141 GB", 141 * 10**9, bandwidth=4_800_000_000_000),
)

# Peak bandwidth in bytes a second. Main memory: channels x transfers a second x 8 bytes.
BANDWIDTHS = {
    "ddr4-2ch": 51_200_000_000,  # two channels of DDR4-3200: a desktop, a small server
    "ddr5-2ch": 89_600_000_000,  # two channels of DDR5-5600
    "ddr5-8ch": 307_200_000_000,  # eight channels of DDR5-4800: a server's socket
    "ddr5-12ch": 460_800_000_000,  # twelve channels of DDR5-4800
    "m4-max": 546_000_000_000,
    "m3-ultra": 819_000_000_000,
    **{
        card.name.partition(",")[0].lower().replace(" ", "-"): card.bandwidth
        for card in CARDS
        if card.bandwidth is not None
    },
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
