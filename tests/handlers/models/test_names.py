"""Names of models: what they look like, and the folders that they become."""

from __future__ import annotations

import pytest

from qwonnx.handlers.models.errors import ModelStoreError
from qwonnx.handlers.models.names import ModelName, Reference, name_from, parse_reference

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("qwen3.5-0.8b", Reference("qwen3.5-0.8b", None, None)),
        ("Qwen/Qwen3.5-0.8B", Reference("Qwen/Qwen3.5-0.8B", None, None)),
        ("Qwen/Qwen3.5-0.8B@refs/pr/1:best", Reference("Qwen/Qwen3.5-0.8B", "refs/pr/1", "best")),
        ("qwen3.5-0.8b:balanced-64-kv-int8", Reference("qwen3.5-0.8b", None, "balanced-64-kv-int8")),
    ],
)
def test_a_reference_has_a_name_a_revision_and_a_recipe(text: str, found: Reference) -> None:
    assert parse_reference(text) == found


@pytest.mark.parametrize("text", ["", "a b", "a/b/c", ":best", "a:", "a@", "../x", "a\nb", "ä", "a:b:c", "x" * 400])
def test_another_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ModelStoreError) as caught:
        parse_reference(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("revision", ["..", "a/../../b", "refs/pr/1", "."])
def test_a_folder_s_name_is_one_part_of_a_path(revision: str) -> None:
    name = ModelName("qwen", revision, "best").folder_name
    assert "/" not in name
    assert name not in (".", "..")


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "A", "", "a+b", "a" * 97])
def test_a_name_that_would_be_another_path_is_refused(name: str) -> None:
    with pytest.raises(ModelStoreError):
        ModelName(name, None, "best")


def test_a_name_is_made_of_any_folder_s() -> None:
    assert name_from("Qwen3.5 0.8B (mine)") == "qwen3.5-0.8b-mine-"
    assert name_from("..secret") == "secret"
    with pytest.raises(ModelStoreError, match="--name"):
        name_from("...")
