"""Answers for rows of a data set, without Ray: the actor's class is an ordinary one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwonnx.handlers.ray.answers import Answers
from qwonnx.runtime import SamplingParams
from tests.handlers.serving import RUNTIME
from tests.runtime.counting_model import make

pytestmark = pytest.mark.fast


def test_rows_get_their_answers_in_order_and_errors_of_their_own(tmp_path: Path) -> None:
    make(tmp_path / "artifact", script="Ujerumani")
    answers = Answers(tmp_path / "artifact", RUNTIME, SamplingParams(temperature=0, max_tokens=30), system="Be brief.")
    questions: list[object] = [f"What is it, {index}?" for index in range(20)]
    questions[3], questions[7] = None, "long " * 2000
    batch = {"id": np.arange(20), "question": np.array(questions, dtype=object)}
    try:
        done = answers(batch)
        cut = Answers(tmp_path / "artifact", RUNTIME, SamplingParams(temperature=0, max_tokens=2))
        reasons = cut({"question": np.array(["What?"], dtype=object)})["answer_error"].tolist()
        cut.close()
    finally:
        answers.close()
    assert done["id"].tolist() == list(range(20))
    whole = [index for index in range(20) if index not in (3, 7)]
    assert {done["answer"][index] for index in whole} == {"Ujerumani"}
    assert {done["answer_error"][index] for index in whole} == {""}
    assert "give texts" in done["answer_error"][3]
    assert "tokens" in done["answer_error"][7]
    assert reasons == ["the answer reached its limit of tokens"]
