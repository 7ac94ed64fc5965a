"""The native library merges over any vocabulary in memory without leaving it."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native.library import VARIABLE, NativeLibrary, native_merging
from qwonnx.runtime.native.token_merging import Outcome
from qwonnx.runtime.text.native_merging import NativePieceMerging
from qwonnx.runtime.text.piece_merging import LongPieceError, PieceMerging
from qwonnx.runtime.text.pieces import CutText, Pieces
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary_file import VocabularyFile, VocabularyFileError
from tests.checkpoints.tokenizer import build_tokenizer
from tests.runtime.text.mapped import BothForms, both_forms

EXAMPLES = int(os.environ.get("QWONNX_TEST_TEXT_EXAMPLES", "200"))
NUM_CHARACTERS = int(os.environ.get("QWONNX_TEST_CHARACTERS", "2000"))  # 126000: all of two planes

_COUNTS = {
    "num_tokens": 256,
    "num_merges": 0,
    "num_slots": 512,
    "max_probes": 1,
    "longest": 1,
    "text_bytes": 256,
    "num_class_blocks": 9,
}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> BothForms:
    return both_forms(build_tokenizer(), tmp_path_factory.mktemp("forms"))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("length", [1, 2, 47, 48, 49, 50, 300, 5000])
def test_pieces_of_any_length_merge_as_in_python(forms: BothForms, length: int) -> None:
    rng, native = random.Random(length), NativePieceMerging(forms.file)
    for alphabet in ("ab", "the ", "aeinorst", "é漢x", "ж"):
        text = "".join(rng.choices(alphabet, k=length))
        for bounds in ((0, length), (0, length // 2, length // 2, length), (length // 3, length), (0, 0, 0, length)):
            cut = CutText(text, array("I", bounds))
            assert native.tokens(cut) == PieceMerging(forms.file).tokens(cut)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("bounds", [(0, 4), (2, 1), (1, 2, 0, 1), (0, 1, 0, 3), (4_000_000_000, 4_000_000_001)])
def test_bounds_that_are_not_those_of_the_text_are_refused(forms: BothForms, bounds: tuple[int, ...]) -> None:
    with pytest.raises(VocabularyFileError):
        NativePieceMerging(forms.file).tokens(CutText("äbc", array("I", bounds)))


@pytest.mark.usefixtures("library")
def test_a_vocabulary_that_nothing_was_checked_of_gives_no_token_that_it_lacks() -> None:
    """As if the file were written to after it was checked: each number is anything."""
    rng = random.Random(0)
    for _ in range(300):
        counts = {**_COUNTS, "num_merges": 600, "max_probes": 4, "longest": 9}
        sizes = {"byte_ids": 256, "starts": 257, "first_merges": 257, "slots": 512}
        sizes |= dict.fromkeys(("rights", "ranks", "results"), 600) | {"class_blocks": 0x1100}
        most = rng.choice((256, 600, 1 << 32))
        words = {name: array("I", [rng.randrange(most) for _ in range(size)]) for name, size in sizes.items()}
        if rng.random() < 0.9:
            words["byte_ids"] = array("I", range(256))
        text = array("B", rng.randbytes(256))
        classes = array("B", rng.randbytes(9 * 256))
        sections = {**words, "text": text, "classes": classes}
        merging = native_merging({name: section.buffer_info()[0] for name, section in sections.items()}, counts)
        written = "".join(rng.choices("abcdefgh 'é漢😀\n", k=200)).encode()
        for merged in (merging.merge(written, array("I", (0, 5, 5, 50, 50, 200))), merging.encode(written)):
            assert merged.outcome in (Outcome.MERGED, Outcome.DAMAGED)
            assert len(merged.tokens) <= len(written)
            assert all(token < 256 for token in merged.tokens)


@pytest.mark.usefixtures("library")
def test_other_threads_run_while_a_long_text_is_merged(forms: BothForms) -> None:
    cut = CutText("the " * 200_000, array("I", (0, 800_000)))
    native, turns, done = NativePieceMerging(forms.file), [], threading.Event()

    def count() -> None:
        while not done.is_set():
            turns.append(time.perf_counter())
            time.sleep(0.001)

    counting = threading.Thread(target=count)
    counting.start()
    started = time.perf_counter()
    native.tokens(cut)
    ended = time.perf_counter()
    done.set()
    counting.join()
    assert sum(started < turn < ended for turn in turns) > 3


def test_without_a_library_python_merges(tmp_path: Path, forms: BothForms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(NativeKernelsError, match="no native kernels"):
        NativePieceMerging(forms.file)
    assert forms.in_python.encode("Der Nordwind") == forms.library.encode("Der Nordwind")


def test_the_mapped_file_is_held_while_the_library_reads_it(library: NativeLibrary, tmp_path: Path) -> None:
    forms = both_forms(build_tokenizer(), tmp_path)
    mapped, expected = forms.mapped, forms.library.encode("Sonne")
    path = Path(shutil.copy(tmp_path / "vocabulary.bin", tmp_path / "other.bin"))
    native = NativePieceMerging(VocabularyFile.open(path))
    path.unlink()
    del forms
    assert mapped.encode("Sonne") == expected
    assert native.tokens(CutText("Sonne", array("I", (0, 5)))).tolist() == expected


@pytest.mark.usefixtures("library")
def test_texts_are_cut_as_the_library_cuts_them(forms: BothForms) -> None:
    """Every character stands alone, after an apostrophe, before letters, in white space, and before a line break."""
    pieces, native = Pieces(TokenizerFrame.read(build_tokenizer())), NativePieceMerging(forms.file)
    assert native.can_cut
    rng = random.Random(0)
    codes = [*range(0x800), *rng.sample([*range(0x800, 0xD800), *range(0xE000, 0x20000)], NUM_CHARACTERS)]
    for first in range(0, len(codes), 500):
        some = [chr(code) for code in codes[first : first + 500]]
        lines = [f"{c}x '{c}x a{c}b  {c} {c}\r\n \t{c}1{c}{c}  '{c}Ex'L{c} \n {c}  " for c in some]
        text = pieces.normalise("".join(lines))
        assert native.encode(text) == native.tokens(pieces.cut([text])[0]), hex(codes[first])


@pytest.mark.usefixtures("library")
@given(
    text=st.lists(st.sampled_from([*"\r\n\t \u00a0\u2028'sSſtTmdDrRvVeElLaé1²Ⅷ漢.,=_\u0301\u0903\u200d"]), max_size=60)
)
@settings(deadline=None, max_examples=EXAMPLES)
def test_any_text_of_what_the_pattern_names_is_cut_as_the_library_cuts_it(forms: BothForms, text: list[str]) -> None:
    forms.check("".join(text))


@pytest.mark.usefixtures("library")
def test_a_piece_of_a_million_letters_is_left_to_the_library(forms: BothForms) -> None:
    text = "ab" * 600_000
    with pytest.raises(LongPieceError):
        NativePieceMerging(forms.file).encode(text)
    loads = len(forms.loads)
    assert forms.mapped.encode(text) == forms.library.encode(text)
    assert len(forms.loads) == loads + 1
