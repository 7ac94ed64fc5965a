from __future__ import annotations

import json
import re

import numpy as np
import pytest

from infra.miniature import copying

pytestmark = pytest.mark.fast


def test_every_answer_stands_in_the_question_or_the_list() -> None:
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        messages = copying.training_example(random).messages
        text = messages[0]["content"]
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            assert (question["role"], answer["role"]) == ("user", "assistant")
            words = re.findall(r"\w+", answer["content"])
            form = next((form for form in copying.FORMS if form in question["content"]), None)
            seen.add(form)
            if form is None:
                assert answer["content"] in text
            elif form == "as JSON":
                assert json.loads(answer["content"]) == words
            else:
                assert answer["content"] == copying.FORMS[form]([word for word in words if word != "and"])
            assert set(words) <= {"and", *re.findall(r"\w+", text)}
            if "after" in question["content"] or "follows" in question["content"]:
                asked = question["content"].removesuffix("?").split(" here?")[0].split()[-1]
                assert f"{asked}, {answer['content']}" in text
    assert seen == {None, *copying.FORMS}


def test_examples_differ_and_are_short() -> None:
    random = np.random.default_rng(1)
    texts = [copying.training_example(random).messages[0]["content"] for _ in range(100)]
    assert len(set(texts)) == 100
    assert max(map(len, texts)) < 120
