"""Open an artifact's folder and check it against its manifest.

A folder is untrusted, like its manifest: a path must not lead out of the folder, and a file must not differ from the
exported one. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from qwonnx.runtime.artifact.file_names import DECODER, TOKENIZER_FILE, VOCABULARY_FILE, is_weight_file
from qwonnx.runtime.artifact.manifest import (
    ArtifactFileError,
    ArtifactHashError,
    FileEntry,
    GraphSpec,
    Manifest,
    ManifestError,
    manifest_json,
    read_manifest,
)
from qwonnx.runtime.artifact.strict_json import quoted


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened artifact: its folder, and a manifest that has been checked against it."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """sha256 of the canonical manifest, which names every file's hash: equal ids mean equal models."""
        return hashlib.sha256(manifest_json(self.manifest).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """Path of one of the manifest's files.

        Raises:
            ArtifactFileError: the manifest does not list the file.
        """
        return self.folder / self.entry(name).path

    def entry(self, name: str) -> FileEntry:
        """What the manifest says of one of its files.

        Raises:
            ArtifactFileError: the manifest does not list the file.
        """
        for entry in self.manifest.files:
            if entry.path == name:
                return entry
        raise ArtifactFileError(f"the artifact {self.folder} has no {name}: export the checkpoint again")

    @property
    def decoder(self) -> GraphSpec:
        """The graph from tokens to logits.

        Raises:
            ManifestError: the manifest has no decoder graph.
        """
        if DECODER not in self.manifest.graphs:
            raise ManifestError(f"the artifact {self.folder} has no {DECODER} graph: export the checkpoint again")
        return self.manifest.graphs[DECODER]

    def has_file(self, name: str) -> bool:
        return any(entry.path == name for entry in self.manifest.files)


def open_artifact(folder: str | os.PathLike[str], *, verify: bool = False) -> Artifact:
    """Read and check an artifact.

    Args:
        folder: the artifact's folder.
        verify: also hash the weights, which reads all of them. Otherwise only their presence and sizes are checked.
            Nothing is then checked of vocabulary.bin, and no hash of a tokenizer.json that has one beside it: their
            readers do this (runtime/text/artifact_tokenizer.py).

    Raises:
        ManifestError: the folder is not an artifact, its schema is newer, or its manifest is malformed.
        ArtifactFileError: a file is missing, has another size, or its path leaves the folder.
        ArtifactHashError: a file's bytes differ from the exported ones. Weights are compared only with verify.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    listed = {entry.path for entry in manifest.files}
    for entry in manifest.files:
        if entry.path == VOCABULARY_FILE and not verify:
            continue
        # Weights take gigabytes, so they are hashed on demand only; a flipped bit in them changes an answer. A mapped
        # vocabulary makes it needless to read tokenizer.json. Code that does not expect damage parses all other files.
        unread = is_weight_file(entry.path) or (entry.path == TOKENIZER_FILE and VOCABULARY_FILE in listed)
        try:
            check_file(root, entry, verify=verify or not unread)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ArtifactFileError(
                f"{entry.path} in {root} cannot be read ({reason}): copy the artifact again"
            ) from error
    for name, graph in manifest.graphs.items():
        if graph.file not in listed:
            raise ManifestError(
                f"graph {name!r} of {root} names {graph.file}, a file it does not list: export the checkpoint again"
            )
    return Artifact(root, manifest)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file, read in chunks."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(root: Path, entry: FileEntry, *, verify: bool) -> None:
    """Check a file's place, presence and size; with verify, its hash.

    Raises:
        ArtifactFileError: its path is absolute, climbs out, or leads out through a link (links are followed before the
            check); it is missing, or has another size.
        ArtifactHashError: with verify, its bytes differ.
        OSError: it cannot be read.
    """
    pure, real_root = PurePosixPath(entry.path), os.path.realpath(root)
    path = Path(os.path.realpath(root / pure))
    if pure.is_absolute() or ".." in pure.parts or not path.is_relative_to(real_root):
        raise ArtifactFileError(
            f"the manifest names {quoted(entry.path)}, which lies outside {root}: do not use this artifact"
        )
    if not path.is_file():
        raise ArtifactFileError(
            f"{quoted(entry.path)[1:-1]} is missing from the artifact {root}: export the checkpoint again"
        )
    size = path.stat().st_size
    if size != entry.size:
        raise ArtifactFileError(
            f"{entry.path} in {root} has {size} bytes where the manifest says {entry.size}: copy the artifact again"
        )
    if verify and file_sha256(path) != entry.sha256:
        raise ArtifactHashError(f"{entry.path} in {root} was changed after its export: copy the artifact again")
