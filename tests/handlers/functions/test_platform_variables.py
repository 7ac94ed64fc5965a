"""Platforms found by their variables: the server's address, its limits, its key, and its artifact."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwonnx.handlers.cli.serve_options import read_options
from qwonnx.handlers.functions.artifact_folder import artifact_folder
from qwonnx.handlers.functions.platform import check_key, find
from qwonnx.handlers.settings import PlatformName, ServerSettings
from qwonnx.runtime.artifact.manifest import MANIFEST_NAME
from qwonnx.runtime.errors import SettingsError
from tests.handlers.cli.commands import error_line, qwonnx, running
from tests.handlers.functions.platforms import NOWHERE, found

pytestmark = pytest.mark.fast

KEY = ServerSettings(api_key="secret")


@pytest.mark.parametrize(
    ("variables", "name", "port"),
    [
        ({}, None, None),
        ({"HOME": "/root", "PORT": "  "}, None, None),
        ({"PORT": "9000"}, "cloud-run", 9000),
        ({"K_SERVICE": "qwen"}, "cloud-run", 8080),
        ({"FUNCTIONS_CUSTOMHANDLER_PORT": "7071", "PORT": "9000"}, "azure", 7071),
        ({"AIP_HTTP_PORT": "8081", "PORT": "9000"}, "vertex", 8081),
        ({"AIP_PREDICT_ROUTE": "/p"}, "vertex", 8080),
        ({"SAGEMAKER_REGION": "eu-north-1"}, "sagemaker", 8080),
        ({"SAGEMAKER_BIND_TO_PORT": "8443"}, "sagemaker", 8443),
    ],
)
def test_auto_is_the_platform_whose_variables_are_there(
    variables: dict[str, str], name: str | None, port: int | None
) -> None:
    platform = find("auto", variables, NOWHERE)
    assert (platform and platform.name, platform and platform.port) == (name, port)


@pytest.mark.parametrize(("folder", "name"), [("opt/ml/model", "sagemaker"), ("mnt/models", "kserve")])
def test_auto_is_the_platform_whose_folder_is_there(folder: str, name: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True)
    platform = find("auto", {"PORT": "9000"}, tmp_path)
    assert platform is not None
    assert (platform.name, platform.artifact) == (name, tmp_path / folder)
    assert str(tmp_path / folder) in platform.described("0.0.0.0", 1)


def test_a_port_alone_means_nothing_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("none", {"PORT": "9000", "AIP_HTTP_PORT": "1"}) is None
    monkeypatch.setenv("PORT", "9000")
    options = read_options(["./artifact"])
    assert (options.host, options.port, options.platform, options.warning) == ("127.0.0.1", 8000, None, None)
    monkeypatch.setenv("K_SERVICE", "qwen")
    options = read_options(["./artifact"])
    assert (options.port, options.warning) == (
        8000,
        "K_SERVICE is set and not read: --platform auto listens where the platform asks",
    )
    asked = read_options(["./artifact", "--platform", "auto", "--no-key", "--hold-while-loading", "2", "--host", "::1"])
    assert (asked.host, asked.port, asked.platform and asked.platform.name) == ("::1", 9000, "cloud-run")
    assert (asked.server.hold_while_loading, asked.server.no_key, asked.warning) == (2, True, None)
    monkeypatch.setenv("QWONNX_PLATFORM", "auto")
    assert read_options(["./artifact", "--platform", "none"]).port == 8000, "an option wins"


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("cloud-run", "PORT", "abc"),
        ("cloud-run", "PORT", "0"),
        ("cloud-run", "PORT", "65536"),
        ("cloud-run", "PORT", "８０"),
        ("cloud-run", "PORT", "tcp://10.0.0.1:80"),
        ("auto", "PORT", "-1"),
        ("cloudevents", "PORT", "1e3"),
        ("cloud-run", "CLOUD_RUN_TIMEOUT_SECONDS", "5m"),
        ("azure", "FUNCTIONS_CUSTOMHANDLER_PORT", "%PORT%"),
        ("sagemaker", "SAGEMAKER_BIND_TO_PORT", "http"),
        ("vertex", "AIP_HTTP_PORT", "8080.0"),
        ("vertex", "AIP_HEALTH_ROUTE", "health"),
        ("vertex", "AIP_PREDICT_ROUTE", "https://host/predict?x=1"),
        ("vertex", "AIP_PREDICT_ROUTE", "/{name:path}"),
        ("kserve", "PORT", "99999"),
    ],
)
def test_a_malformed_variable_of_a_platform_is_named(name: str, variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{variable} is .*: give a "):
        find(name, {variable: value}, NOWHERE)


def test_a_platforms_limits_are_defaults_and_an_operators_variables_win() -> None:
    platform = found("sagemaker")
    assert platform.settings({}).max_body_bytes == 4 << 20
    assert platform.settings({"QWONNX_MAX_BODY_BYTES": " "}).max_answer_seconds == 58
    assert platform.settings({"QWONNX_MAX_BODY_BYTES": "6MB"}).max_body_bytes == 6_000_000
    assert found("azure").settings({}).max_answer_seconds == 225
    assert found("cloud-run", CLOUD_RUN_TIMEOUT_SECONDS="60").settings({}).max_answer_seconds == 59


@pytest.mark.parametrize("name", ["cloud-run", "cloudevents"])
def test_a_server_that_everybody_reaches_needs_a_key_or_a_word(name: str) -> None:
    platform = found(name)
    with pytest.raises(SettingsError, match=f"on {name} .* has no key: .*QWONNX_API_KEY.*--no-key"):
        check_key(platform, ServerSettings(), platform.address)
    assert check_key(platform, KEY, platform.address) is None
    assert check_key(platform, ServerSettings(api_keys="keys.txt"), platform.address) is None
    assert check_key(platform, ServerSettings(no_key=True), platform.address) is None
    assert check_key(platform, ServerSettings(), "127.0.0.1") is None


def test_platforms_that_check_who_calls_need_none_and_some_would_drop_it() -> None:
    for name in ("sagemaker", "vertex", "kserve", "azure"):
        platform = found(name)
        assert check_key(platform, ServerSettings(), platform.address) is None
        warned = check_key(platform, KEY, platform.address)
        assert (warned is not None) == (name in ("sagemaker", "vertex"))
    assert "other machines" in (check_key(None, ServerSettings(), "0.0.0.0") or "")
    assert check_key(None, ServerSettings(no_key=True), "0.0.0.0") is None
    with pytest.raises(SettingsError, match="leave one of them out"):
        check_key(None, ServerSettings(no_key=True, api_key="k"), "0.0.0.0")


def test_the_artifact_is_the_given_one_or_the_variables_or_the_platforms(tmp_path: Path) -> None:
    given, root = Path("given"), tmp_path
    models = root / "mnt" / "models"
    platform = found("kserve", root)
    variable = {"QWONNX_ARTIFACT": "./variable"}
    assert artifact_folder(given, platform, variable) == given
    assert artifact_folder(None, platform, variable) == Path("./variable")
    with pytest.raises(SettingsError, match=rf"kserve puts an artifact into {re.escape(str(models))}"):
        artifact_folder(None, platform, {})
    models.mkdir(parents=True)
    assert artifact_folder(None, platform, {}) == models
    (models / "qwen-int4").mkdir()
    (models / "qwen-int4" / MANIFEST_NAME).write_text("{}")
    (models / "logs").mkdir()
    assert artifact_folder(None, platform, {}) == models / "qwen-int4", "archives often have a folder"
    with pytest.raises(SettingsError, match="QWONNX_ARTIFACT"):
        artifact_folder(None, None, {})


def test_a_bucket_counts_only_where_it_is_mounted(tmp_path: Path) -> None:
    environment = {"AIP_STORAGE_URI": "gs://bucket/models/1/"}
    platform = found("vertex", tmp_path, **environment)
    with pytest.raises(SettingsError, match=r"AIP_STORAGE_URI is gs://bucket/models/1/.* downloads nothing"):
        artifact_folder(None, platform, environment)
    (tmp_path / "gcs/bucket/models/1").mkdir(parents=True)
    assert artifact_folder(None, platform, environment) == tmp_path / "gcs/bucket/models/1"
    assert found("vertex", AIP_STORAGE_URI="/models").artifact == Path("/models")


def test_every_platform_has_a_name_for_the_command(counting_folder: Path) -> None:
    assert {each.value for each in PlatformName} > {found(each).name for each in ("azure", "kserve", "vertex")}
    said = error_line(qwonnx("serve", counting_folder, "--platform", "cloud-run", PORT="abc"))
    assert said == "qwonnx: error: PORT is 'abc': give a whole number\n"
    assert "has no key" in error_line(qwonnx("serve", counting_folder, "--platform", "auto", PORT="9000"))
    said = error_line(qwonnx("serve", counting_folder, QWONNX_PLATFORM="gcp"))
    assert "QWONNX_PLATFORM: platform is 'gcp': give none, auto, azure" in said


def test_the_command_says_what_it_found_and_options_win(counting_folder: Path) -> None:
    environment = {"PORT": "1", "QWONNX_PLATFORM": "auto", "QWONNX_ARTIFACT": str(counting_folder)}
    with running("serve", "--port", "0", "--no-key", **environment) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
    assert re.fullmatch(r"Platform: cloud-run \(PORT=1\), listening on 0\.0\.0\.0, port [1-9]\d+\n", first)
    assert not first.endswith("port 1\n")
