from __future__ import annotations

import numpy as np

from tests.miniature import copying


def test_every_answer_stands_in_the_question_or_the_list() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        messages = copying.training_example(random).messages
        text = messages[0]["content"]
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            assert (question["role"], answer["role"]) == ("user", "assistant")
            assert answer["content"] in text
            if "after" in question["content"] or "follows" in question["content"]:
                asked = question["content"].removesuffix("?").split(" here?")[0].split()[-1]
                assert f"{asked}, {answer['content']}" in text


def test_examples_differ_and_are_short() -> None:
    random = np.random.default_rng(1)
    texts = [copying.training_example(random).messages[0]["content"] for _ in range(100)]
    assert len(set(texts)) == 100
    assert max(map(len, texts)) < 120
