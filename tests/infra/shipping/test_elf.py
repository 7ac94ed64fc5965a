"""What an ELF file is linked to, compared with readelf."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from infra.shipping.elf import Linkage, is_elf, read_linkage

pytestmark = pytest.mark.fast

LIBRARIES = sorted(
    [
        *(Path(onnxruntime.__file__).parent / "capi").glob("*.so*"),
        *Path(np.__file__).parent.glob("_core/*.so"),
        *(Path(np.__file__).parent.parent / "numpy.libs").glob("*.so*"),
    ]
)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
def test_readelf_says_the_same() -> None:
    assert len(LIBRARIES) > 5
    for path in LIBRARIES:
        text = subprocess.run(["readelf", "-dW", str(path)], capture_output=True, text=True, check=True).stdout
        named = re.search(r"\(SONAME\).*\[(.*)\]", text)
        wanted = Linkage(named and named[1], tuple(re.findall(r"\(NEEDED\).*\[(.*)\]", text)))
        assert read_linkage(path) == wanted, path.name


def test_other_and_damaged_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "text.so"
    other.write_text("INPUT(libm.so)")
    assert not is_elf(other)
    with pytest.raises(ValueError, match="is no little-endian ELF file"):
        read_linkage(other)
    whole = LIBRARIES[-1].read_bytes()
    for size in (20, 80, 4096):
        other.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is no whole ELF file"):
            read_linkage(other)
