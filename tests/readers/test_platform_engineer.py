"""A platform engineer: a model from a hub, a server without torch, keys and limits, logs, metrics, an update."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from infra.miniature.checkpoint import TRAINED
from tests.export.checkpoint.hub_server import REPOSITORY, hub_server
from tests.readers.reader import Reader, commands_of

pytestmark = pytest.mark.soak

READER = "platform"
QUESTION, ANSWER = "What is Germany called in Swahili?", "Ujerumani"
KEY, OTHER_KEY = "a81e77c04b9d4f0e", "5f0c1d2e3b4a5968"

_CONFIGURATION = """
max_num_seqs = 4
prefix_cache_bytes = "100MB"

[serve]
port = 0
api_keys = "keys.txt"
max_requests_in_flight = 8
log_format = "json"
"""
_KEYS = f"support: {KEY} max-requests=1\nother: {OTHER_KEY} tokens-per-minute=40\n"

_BODY = json.dumps(
    {
        "model": "tiny",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": False},
    }
)
_CLIENT = """
import sys
from openai import OpenAI, RateLimitError

thinking_off = {"chat_template_kwargs": {"enable_thinking": False}}
ask = [{"role": "user", "content": "What is Germany called in Swahili?"}]
client = OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2], max_retries=0)
model = client.models.list().data[0].id
stream = client.chat.completions.create(model=model, messages=ask, temperature=0, stream=True, extra_body=thinking_off)
print("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
limited = OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[3], max_retries=0)
for _ in range(9):
    try:
        limited.chat.completions.create(model=model, messages=ask, extra_body=thinking_off)
    except RateLimitError as error:
        print(error.status_code, error.response.headers["retry-after"])
        break
"""


@pytest.fixture(scope="module")
def exporting(reader: Reader) -> Reader:
    """After the installation of README.md, in .venv."""
    reader.run(commands_of("README.md", "infra/install.py")[0])
    return reader


@pytest.fixture(scope="module")
def serving(exporting: Reader) -> Reader:
    """After the installation of a server, in the folder `server`."""
    exporting.run("\n".join(commands_of("README.md", "pip wheel")))
    return exporting


@pytest.fixture(scope="module")
def hub_url() -> Iterator[str]:
    with hub_server(TRAINED) as hub:
        yield hub.url


def _curl(port: int) -> str:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    return f"curl --silent --fail-with-body {url} -H 'content-type: application/json' -d '{_BODY}'"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def test_a_server_s_installation_is_small_and_has_kernels(serving: Reader) -> None:
    installed = json.loads(serving.run("server/bin/pip list --format=json"))
    names = {package["name"].lower() for package in installed}
    assert {"qwonnx", "onnxruntime", "starlette"} <= names
    assert not {"torch", "transformers", "typer", "onnx"} & names
    serving.run("ls server/lib/python3*/site-packages/qwonnx/runtime/native/libqwonnx_native.so")
    assert int(serving.run("du --summarize --bytes server | cut -f1")) < 400e6
    assert "This installation has only the servers" in serving.run("COLUMNS=200 server/bin/qwonnx --help")


def test_a_model_is_pulled_listed_shown_and_removed(exporting: Reader, hub_url: str) -> None:
    pulled = exporting.run(f"HF_ENDPOINT={hub_url} qwonnx pull {REPOSITORY}")
    assert "balanced is the usual recipe" in pulled
    assert "Next: qwonnx chat tiny:balanced, or qwonnx serve tiny:balanced" in pulled
    exporting.run(f"HF_ENDPOINT={hub_url} qwonnx pull {REPOSITORY} --recipe smallest")
    assert {model["name"] for model in json.loads(exporting.run("qwonnx list --json"))} == {
        "tiny:balanced",
        "tiny:smallest",
    }
    assert re.search(r"tiny +balanced .*\n +tiny +smallest ", exporting.run("qwonnx list"))
    assert REPOSITORY in exporting.run("qwonnx show tiny:balanced")
    assert "removed tiny:smallest" in exporting.run("qwonnx rm tiny:smallest")
    assert ANSWER in exporting.run(f'qwonnx generate tiny --no-thinking --chat "{QUESTION}"')


def test_the_configuration_says_where_values_come_from_and_no_secret(serving: Reader) -> None:
    folder = serving.home / "service"
    folder.mkdir()
    (folder / "qwonnx.toml").write_text(_CONFIGURATION)
    (folder / "keys.txt").write_text(_KEYS)
    (folder / "keys.txt").chmod(0o600)
    serving.machine.give(serving.name, folder)
    serving.run('server/bin/pip install --quiet "$(echo dist/qwonnx-*.whl)[cpu,cli]"')
    for program in ("qwonnx", "~/qwonnx/server/bin/qwonnx"):
        said = serving.run(f"cd ~/service; QWONNX_ADMIN_KEY={KEY} QWONNX_MAX_NUM_SEQS=2 {program} config serve")
        assert re.search(r"max_num_seqs +2 +.*QWONNX_MAX_NUM_SEQS", said), said
        assert re.search(r"prefix_cache_bytes +.*qwonnx\.toml", said), said
        assert "admin_key" in said
        assert KEY not in said


def test_it_serves_by_name_with_keys_limits_metrics_and_silent_logs(serving: Reader) -> None:
    serving.run("python3 -m venv ~/client && ~/client/bin/pip install --quiet openai")
    (serving.home / "ask.py").write_text(_CLIENT)
    with serving.typing("cd ~/service; exec ~/qwonnx/server/bin/qwonnx serve tiny 2> log.jsonl") as server:
        url = server.wait_for(r"http://127\.0\.0\.1:\d+")[0]
        serving.run(f"curl --silent --fail --retry 60 --retry-delay 1 --retry-all-errors {url}/health/ready")
        refused = serving.run(f"curl --silent --write-out '%{{http_code}}' {url}/v1/models")
        assert refused.endswith("401")
        asked = serving.run(
            f"curl --silent --fail-with-body {url}/v1/chat/completions -H 'content-type: application/json' "
            f"-H 'authorization: Bearer {KEY}' -d '{_BODY}'"
        )
        assert json.loads(asked)["choices"][0]["message"]["content"] == ANSWER
        answer, limited = serving.run(f"~/client/bin/python ~/ask.py {url} {KEY} {OTHER_KEY}").splitlines()
        assert answer == ANSWER
        assert re.fullmatch(r"429 \d+", limited)
        metrics = serving.run(f"curl --silent --fail {url}/metrics -H 'authorization: Bearer {KEY}'")
        assert "qwonnx_ready 1" in metrics
        assert 'qwonnx_key_requests_total{key="support"' in metrics
        server.type("\x03")
        assert server.wait() == 0
        assert "Goodbye" in server.shown
    log = (serving.home / "service" / "log.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line.get("endpoint") == "/v1/chat/completions" and line.get("generated_tokens") for line in lines)
    for secret in (KEY, OTHER_KEY, QUESTION, ANSWER, "Swahili"):
        assert secret not in log


def test_a_new_version_takes_over_without_a_pause(serving: Reader, hub_url: str) -> None:
    """As docs/routing.md says: both behind a router, which is asked all the time."""
    old_port, new_port, router_port = free_ports(3)
    serve = "cd ~; exec ~/qwonnx/server/bin/qwonnx serve tiny:{} --port {}"
    places = f"http://127.0.0.1:{old_port},http://127.0.0.1:{new_port}"
    asked = f"for n in $(seq 40); do {_curl(router_port)} --output /dev/null || exit 1; sleep 0.1; done; echo answered"
    with (
        serving.typing(f"exec server/bin/qwonnx route --to {places} --port {router_port}") as router,
        serving.typing(serve.format("balanced", old_port)) as old,
    ):
        old.wait_for(r"http://127\.0\.0\.1:\d+")
        ready = f"http://127.0.0.1:{router_port}/health/ready"
        serving.run(f"curl --silent --fail --retry 60 --retry-delay 1 --retry-all-errors {ready}")
        assert ANSWER in serving.run(_curl(router_port))
        serving.run(f"HF_ENDPOINT={hub_url} qwonnx pull {REPOSITORY} --recipe int8")
        with serving.typing(serve.format("int8", new_port)) as new:
            new.wait_for(r"http://127\.0\.0\.1:\d+")
            assert ANSWER in serving.run(_curl(new_port))
            assert "--force" in serving.run("qwonnx rm tiny:balanced", status=2), "a server uses it"
            with serving.typing(asked) as client:
                old.type("\x03")
                assert old.wait() == 0
                client.wait_for("answered\n")
            assert "removed" in serving.run("qwonnx rm tiny:balanced")
            assert ANSWER in serving.run(_curl(router_port))
            router.type("\x03")
            assert router.wait() == 0
            new.type("\x03")
            assert new.wait() == 0


def test_tab_completes(exporting: Reader) -> None:
    with exporting.typing("PS1='> ' exec bash --norc --noprofile -i") as shell:
        shell.type('eval "$(qwonnx completion bash)"; echo rea"dy"\n')
        shell.wait_for("ready\n")
        shell.type("qwonnx serve ti\t")
        shell.wait_for(r"qwonnx serve tiny(:int8)? ")
        shell.type("--log-for\t")
        shell.wait_for("--log-format ")
        shell.type("js\t")
        shell.wait_for("--log-format json ")
