"""The benchmark of the HTTP layer runs, on asyncio's own event loop, and its last line is JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.bench import http_layer
from tests.runtime import counting_model


def test_the_last_line_has_the_rates_of_both_checkouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = counting_model.make(tmp_path / "artifact").folder
    root = Path(http_layer.__file__).resolve().parents[2]
    options = ["--streams", "3", "--tokens", "20", "--rounds", "1", "--chats", "2", "--other", str(root)]
    http_layer.main([str(folder), *options])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["benchmark"], told["streams"], told["loop"]) == ("http_layer", 3, "asyncio")
    for each in (told, told["other"]):
        assert each["events_per_second"] > 0
        assert each["server_cpu_us_per_event"] > 0
        assert 0 < each["first_event_ms_lowest"] <= each["first_event_ms_median"]
    assert told["events_over_other"]["lowest"] > 0
