"""Command of setuptools that makes the same source distribution of the same files, whoever makes it and when.

With SOURCE_DATE_EPOCH (seconds since 1970, as reproducible-builds.org defines it) the archive's members are sorted,
have this time, no owner, and modes without the builder's umask. Without it, setuptools' archive stays as it is.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

from setuptools.command.sdist import sdist


class ReproducibleSdist(sdist):
    """setuptools' sdist, whose archives are then written anew."""

    def make_distribution(self) -> None:
        super().make_distribution()
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None:
            return
        for name in self.get_archive_files():
            if name.endswith(".tar.gz"):
                write_anew(Path(name), int(epoch))


def write_anew(path: Path, seconds: int) -> None:
    """Replace a .tar.gz by one with the same files that has all times set to these seconds since 1970."""
    packed = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as new:
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            plain = tarfile.TarInfo(member.name)
            plain.size, plain.type, plain.mtime = member.size, member.type, seconds
            plain.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            new.addfile(plain, old.extractfile(member) if member.isfile() else None)
    with path.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=seconds) as compressed:
        compressed.write(packed.getvalue())
