"""Calls the function app as Azure's Python worker does, for a process of its own: prints one JSON line a request.

Standard input has the requests: `[[method, url, headers, body], ...]`, all sent at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import azure.functions

from qwonnx.handlers.functions.azure_functions import app


async def _answers(requests: list[Any]) -> list[azure.functions.HttpResponse]:
    (function,) = app.get_functions()
    assert function.get_function_name() == "qwonnx"
    call = function.get_user_function()
    made = [
        azure.functions.HttpRequest(
            method=method, url=url, headers=headers, params={}, route_params={}, body=body.encode()
        )
        for method, url, headers, body in requests
    ]
    return await asyncio.gather(*(call(request, None) for request in made))


def main() -> None:
    for answer in asyncio.run(_answers(json.load(sys.stdin))):
        print(json.dumps([answer.status_code, dict(answer.headers), answer.get_body().decode()]))


if __name__ == "__main__":
    main()
