"""The native library merges over any vocabulary in memory without leaving it."""

from __future__ import annotations

import random
import shutil
import threading
import time
from array import array
from pathlib import Path

import pytest

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native.library import VARIABLE, NativeLibrary, native_merging
from qwonnx.runtime.text.native_merging import NativePieceMerging
from qwonnx.runtime.text.piece_merging import PieceMerging
from qwonnx.runtime.text.pieces import CutText
from qwonnx.runtime.text.vocabulary_file import VocabularyFile, VocabularyFileError
from tests.checkpoints.tokenizer import build_tokenizer
from tests.runtime.text.mapped import BothForms, both_forms

_COUNTS = {"num_tokens": 256, "num_merges": 0, "num_slots": 512, "max_probes": 1, "longest": 1, "text_bytes": 256}


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
        sizes |= dict.fromkeys(("rights", "ranks", "results"), 600)
        most = rng.choice((256, 600, 1 << 32))
        words = {name: array("I", [rng.randrange(most) for _ in range(size)]) for name, size in sizes.items()}
        if rng.random() < 0.9:
            words["byte_ids"] = array("I", range(256))
        text = array("B", rng.randbytes(256))
        addresses = {name: section.buffer_info()[0] for name, section in (*words.items(), ("text", text))}
        written = "".join(rng.choices("abcdefgh", k=200))
        found = native_merging(addresses, counts).tokens(written.encode(), array("I", (0, 5, 5, 50, 50, 200)))
        assert found is None or (len(found) <= 200 and max(found) < 256)


@pytest.mark.usefixtures("library")
def test_other_threads_run_while_a_long_text_is_merged(forms: BothForms) -> None:
    cut = CutText("the " * 400_000, array("I", (0, 1_600_000)))
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
