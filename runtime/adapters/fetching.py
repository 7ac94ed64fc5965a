"""Adapters at URLs: their two files, fetched into a private folder and checked against a sha256 that the URL ends with.

    s3://bucket/adapters/support#sha256=9f86d0...

The number is that of both files one after the other: `cat adapter_config.json adapter_model.safetensors | sha256sum`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from qwonnx.runtime.adapters.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qwonnx.runtime.errors import AdapterError, SettingsError
from qwonnx.runtime.install import how_to_install

_DIGEST = re.compile(r"(?P<place>[^#]+)#sha256=(?P<digest>[0-9a-f]{64})")
_SECRETS = re.compile(r"//[^/@]*@|\?.*")
_BYTES_AT_ONCE = 1 << 20
_MAX_CONFIG_BYTES = 16 << 20


def is_url(location: str) -> bool:
    return "://" in location


def fetch(url: str, folder: Path, max_bytes: int) -> Path:
    """Copy an adapter from a URL of fsspec.

    Args:
        url: of its folder, with #sha256=.
        folder: where the files go; it exists and is empty.
        max_bytes: of the weights.

    Returns:
        folder.

    Raises:
        SettingsError: the URL has no sha256, or fsspec or its package for such a URL is not installed.
        AdapterError: the files cannot be read, are too large, or are not those that the sha256 says.
    """
    found = _DIGEST.fullmatch(url)
    shown = _SECRETS.sub("//" if "@" in url else "", url.partition("#")[0])
    if found is None or "::" in url:
        raise SettingsError(f"the adapter {shown} needs #sha256= of its files at the end: see docs/adapters.md")
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise SettingsError(f"adapters at a URL need fsspec: {how_to_install('capsules')}") from error
    try:
        system, place = url_to_fs(found["place"])
    except (ImportError, ValueError) as error:  # its package is missing, or an unknown protocol
        raise SettingsError(f"adapters cannot be read there: {' '.join(str(error).split())[:200]}") from error
    digest = hashlib.sha256()
    for name, most in ((ADAPTER_CONFIG, _MAX_CONFIG_BYTES), (ADAPTER_WEIGHTS, max_bytes)):
        try:
            size = _copy(system, f"{place.rstrip('/')}/{name}", folder / name, most, digest)
        except FileNotFoundError as error:
            raise AdapterError(f"{shown} has no {name}: give the folder that peft's save_pretrained wrote") from error
        except Exception as error:  # every file system has errors of its own
            raise AdapterError(f"{shown}/{name} cannot be read ({type(error).__name__}): check its rights") from error
        if size > most:
            raise AdapterError(f"{shown}/{name} has more than {most} bytes: raise adapter_bytes, or merge the adapter")
    if digest.hexdigest() != found["digest"]:
        raise AdapterError(f"{shown} is not the adapter that its sha256 says: it is {digest.hexdigest()}")
    return folder


def _copy(system: Any, place: str, to: Path, at_most: int, digest: Any) -> int:
    """Copy a file and hash it; return its size, or that of the part with which it becomes too large."""
    size = 0
    with system.open(place, "rb") as source, to.open("xb") as out:
        while size <= at_most and (content := source.read(_BYTES_AT_ONCE)):
            size += len(content)
            digest.update(content)
            out.write(content)
    return size
