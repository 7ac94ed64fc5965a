"""Which licences may be shipped, and what a package's own words about its licence mean (SPDX).

Licences that ask for their text and a name only are on the list. A licence that is not on it is a person's decision:
add it here with a reason, or leave the package out.
"""

from __future__ import annotations

from license_expression import ExpressionError, get_spdx_licensing

ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "GPL-3.0-or-later WITH GCC-exception-3.1",  # GCC's runtime libraries; what is linked to them is free
        "ISC",
        "MIT",
        "PSF-2.0",
        "Zlib",
    }
)
# Of packages that pip fetches from their makers, and that a release does not contain: the licence asks those who change
# or ship their files to give the sources.
INSTALLED = ALLOWED | {"MPL-2.0"}  # certifi, tqdm

# Package and its own words that are no SPDX licence (none: ""): what the licence file of its wheel or repository says.
CONCLUDED = {
    ("flatbuffers", "Apache 2.0"): "Apache-2.0",
    ("flatbuffers", "License :: OSI Approved :: Apache Software License"): "Apache-2.0",
    ("huggingface-hub", "License :: OSI Approved :: Apache Software License"): "Apache-2.0",
    ("jinja2", "License :: OSI Approved :: BSD License"): "BSD-3-Clause",
    ("protobuf", "3-Clause BSD License"): "BSD-3-Clause",
    ("protobuf", ""): "BSD-3-Clause",
    ("tokenizers", "License :: OSI Approved :: Apache Software License"): "Apache-2.0",
}

# What a wheel contains besides its own work, where its metadata names only that.
BUNDLED = {
    "numpy": "GPL-3.0-or-later WITH GCC-exception-3.1"
}  # libgfortran and libquadmath beside OpenBLAS (BSD-3-Clause)


def is_allowed(expression: str, allowed: frozenset[str] = ALLOWED) -> bool:
    """Whether an SPDX expression leaves a choice that is on a list. What is no such expression is not allowed."""
    try:
        parsed = get_spdx_licensing().parse(expression, validate=True)
    except ExpressionError:
        return False
    return parsed is not None and _holds(parsed, allowed)


def _holds(node: object, allowed: frozenset[str]) -> bool:
    operator = str(getattr(node, "operator", "")).strip()
    parts = getattr(node, "args", ())
    if operator == "AND":
        return all(_holds(part, allowed) for part in parts)
    if operator == "OR":
        return any(_holds(part, allowed) for part in parts)
    return str(node) in allowed
