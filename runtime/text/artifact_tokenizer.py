"""The tokenizer of an artifact: mapped from vocabulary.bin, or loaded from tokenizer.json where that cannot be."""

from __future__ import annotations

import hashlib
import logging
from functools import partial

from qwonnx.runtime.artifact.file_names import TOKENIZER_FILE, VOCABULARY_FILE
from qwonnx.runtime.artifact.folder import Artifact, check_file
from qwonnx.runtime.artifact.manifest import ArtifactError, ArtifactFileError, ArtifactHashError
from qwonnx.runtime.errors import TokenizerError
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.text.library_vocabulary import LibraryVocabulary
from qwonnx.runtime.text.mapped_vocabulary import MappedVocabulary
from qwonnx.runtime.text.pieces import UnknownKindError
from qwonnx.runtime.text.tokenizer import MAX_FILE_BYTES, Tokenizer
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary import Vocabulary
from qwonnx.runtime.text.vocabulary_file import VocabularyFile, VocabularyFileError

logger = logging.getLogger(__name__)


def open_tokenizer(artifact: Artifact) -> Tokenizer:
    """The tokenizer of an artifact.

    An artifact's vocabulary.bin is used if it is the exported one and was made from the artifact's tokenizer.json. Else
    one warning says why not, and tokenizer.json is loaded.

    Raises:
        ArtifactError: there is no tokenizer.json, or it cannot be read.
        TokenizerError: it cannot be used.
    """
    if artifact.has_file(VOCABULARY_FILE):
        try:
            return _mapped(artifact)
        except (VocabularyFileError, UnknownKindError, TokenizerError, ArtifactError, OSError) as error:
            reason = error.reason if isinstance(error, TokenizerError) else str(error)
            logger.warning(
                "%s is not used, so the start takes longer and more memory (%s): copy the artifact again, or export it"
                " again",
                artifact.folder / VOCABULARY_FILE,
                reason,
            )
    return load_tokenizer(artifact)


def load_tokenizer(artifact: Artifact) -> Tokenizer:
    """The tokenizer of an artifact, loaded by the library.

    Raises:
        ArtifactError: there is no tokenizer.json, it cannot be read, or it is not the exported one.
        TokenizerError: it cannot be used.
    """
    return Tokenizer(_exported_text(artifact))


def read_text(artifact: Artifact, name: str) -> str:
    """The text of one of the artifact's files, with its line breaks as they are.

    Raises:
        ArtifactFileError: the manifest does not list it; it cannot be read, is too large, or is not UTF-8.
    """
    path = artifact.file(name)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ArtifactFileError(f"{path} is larger than {bytes_text(MAX_FILE_BYTES)}: export the checkpoint again")
        return path.read_bytes().decode()
    except OSError as error:
        raise ArtifactFileError(f"{path} cannot be read ({error.strerror}): copy the artifact again") from error
    except UnicodeDecodeError as error:
        raise ArtifactFileError(f"{path} is not UTF-8 text: export the checkpoint again") from error


def _mapped(artifact: Artifact) -> Tokenizer:
    entry = artifact.entry(VOCABULARY_FILE)
    if entry.size > MAX_FILE_BYTES:
        raise VocabularyFileError(f"it is larger than {bytes_text(MAX_FILE_BYTES)}")
    # A flipped bit in it would change tokens, and it takes a few milliseconds: the hash is compared at every start.
    check_file(artifact.folder, entry, verify=True)
    file = VocabularyFile.open(artifact.file(VOCABULARY_FILE))
    source = artifact.entry(TOKENIZER_FILE)
    if (file.header.source_sha256.hex(), file.header.source_bytes) != (source.sha256, source.size):
        raise VocabularyFileError(f"it was made from another {TOKENIZER_FILE}")
    file.check()
    return Tokenizer(file.frame, partial(_vocabulary, artifact, file))


def _vocabulary(artifact: Artifact, file: VocabularyFile, frame: TokenizerFrame) -> Vocabulary:
    return MappedVocabulary(file, frame, partial(_from_library, artifact))


def _from_library(artifact: Artifact) -> Vocabulary:
    """The vocabulary of tokenizer.json, long after the artifact was opened."""
    try:
        text = _exported_text(artifact)
    except ArtifactError as error:
        raise TokenizerError(str(error)) from error
    return LibraryVocabulary(TokenizerFrame.read(text))


def _exported_text(artifact: Artifact) -> str:
    """The text of tokenizer.json, whose hash nobody compares when an artifact with a vocabulary.bin is opened."""
    text = read_text(artifact, TOKENIZER_FILE)
    if hashlib.sha256(text.encode()).hexdigest() != artifact.entry(TOKENIZER_FILE).sha256:
        raise ArtifactHashError(
            f"{TOKENIZER_FILE} in {artifact.folder} was changed after its export: copy the artifact again"
        )
    return text
