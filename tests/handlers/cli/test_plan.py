"""`qwonnx plan` as users run it: tables at 80 columns, JSON, limits, and one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.quantization.recipe import Preset, Recipe
from qwonnx.handlers.cli.command_line import command_line
from tests.checkpoints import write_tiny
from tests.checkpoints.published import PUBLISHED
from tests.handlers.cli.commands import QWONNX, error_line, qwonnx

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("Qwen3.5-35B-A3B") / "config.json"
    path.write_text(json.dumps(PUBLISHED["35B-A3B"].config()))
    return path


def plan_of(*arguments: object) -> dict[str, Any]:
    result = qwonnx("plan", *arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_the_tables_hold_the_plan_in_80_columns(config_file: Path) -> None:
    result = qwonnx("plan", config_file, "--bandwidth", "ddr5-2ch", COLUMNS="80")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for words in ("34.66 B parameters, 2.95 B active", "tokens/s", "256k", "1M", "AWS Lambda"):
        assert words in result.stdout
    assert [line.split()[0] for line in lines if line.strip().startswith(("fp32", "int8", "int4"))][:3] == [
        "fp32",
        "int8",
        "int4",
    ]
    assert "Note: 1M tokens are more than the 262144" in result.stdout
    assert "…" not in result.stdout  # the text is complete


def test_json_has_stable_keys_and_its_parts_add_up(config_file: Path) -> None:
    document = plan_of(config_file, "--context", "64k", "--sequences", 2, "--kv", "int8", "--bandwidth", "50GB/s")
    assert list(document) == [
        "schema_version",
        "source",
        "model",
        "assumptions",
        "export_memory",
        "recipes",
        "notes",
    ]
    assert document["schema_version"] == 2
    assert document["source"] == config_file.parent.name
    assert document["model"]["num_parameters"] == 34_660_610_688
    assert document["model"]["kv_bytes_per_token"] == 10_240
    assert document["assumptions"] == {
        "target": "cpu",
        "activations": "int8",
        "kernels": "native",
        "context": 65_536,
        "sequences": 2,
        "kv": "int8",
        "chunk_tokens": 512,
        "num_threads": 4,
        "bandwidth": 50_000_000_000,
    }
    assert [recipe["name"] for recipe in document["recipes"]] == [*Preset, "smallest", "balanced", "best"]
    for recipe in document["recipes"]:
        artifact, decode = recipe["artifact"], recipe["decode"]
        assert artifact["total"] == sum(artifact["files"].values())
        weights = {name: size for name, size in artifact["files"].items() if name.startswith("weights-")}
        assert artifact["weights"] == sum(weights.values())
        assert decode["bytes_per_step"] == decode["weights"] + decode["kv"] + decode["states"]
        assert decode["tokens_per_second"] == pytest.approx(2 * 50e9 / decode["bytes_per_step"])
        assert [use["context"] for use in recipe["memory"]] == [4096, 32_768, 65_536, 262_144, 1_048_576]
        for use in recipe["memory"]:
            droppable = use["read_once_weights"] + use["embedding"]
            parts = sum(use.values()) - use["context"] - use["required"] - use["resident"] - droppable
            assert use["required"] == parts
            assert use["resident"] == parts + droppable
        assert [one["name"] for one in recipe["deployments"]] == [
            "AWS Lambda, 10 GB",
            "SageMaker serverless",
            "Cloud Run, 32 GiB",
            "container, 32 GB",
        ]


def test_every_key_of_the_json_is_documented(config_file: Path) -> None:
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    fitted = json.loads(qwonnx("plan", config_file, "--fit", "memory=1TB", "--json").stdout)
    keys = _keys(plan_of(config_file)) | _keys(fitted)
    assert len(keys) > 60
    assert {key for key in keys if f"`{key}`" not in page} == set()


def _keys(value: Any) -> set[str]:
    """The keys of all objects within, except for names of files."""
    if isinstance(value, list):
        return set().union(*map(_keys, value))
    if not isinstance(value, dict):
        return set()
    return value.keys() | set().union(*(_keys(inner) for key, inner in value.items() if key != "files"))


def test_one_recipe_and_ones_own_can_be_asked_for(config_file: Path, tmp_path: Path) -> None:
    (named,) = plan_of(config_file, "--weights", "int4", "--weight-block-size", 32)["recipes"]
    assert (named["name"], named["weight_block_size"]) == ("int4", 32)
    recipe = tmp_path / "mine.toml"
    recipe.write_text('weights = "int4"\nweight_block_size = 32\n[[rules]]\npattern = "lm_head.weight"\nbits = 8\n')
    (own,) = plan_of(config_file, "--recipe", recipe)["recipes"]
    assert own["name"] == "mine"
    assert own["artifact"]["weights"] - named["artifact"]["weights"] == 248_320 * 2048 // 2


def test_an_exact_plan_of_a_checkpoint_says_so(tmp_path: Path) -> None:
    one_layer = {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    checkpoint = write_tiny(tmp_path, architecture="Qwen3_5ForCausalLM", text_overrides=one_layer)
    # In this process, which has torch imported already.
    result = CliRunner().invoke(command_line(), ["plan", str(checkpoint), "--weights", "fp32", "--exact", "--json"])
    assert result.exit_code == 0, result.output
    (recipe,) = json.loads(result.stdout)["recipes"]
    assert recipe["artifact"]["is_exact"]


def test_what_fits_is_chosen_with_status_0(config_file: Path) -> None:
    limits = "memory=32GB,disk=40GB,context=32k"
    shown = qwonnx("plan", config_file, "--fit", limits, COLUMNS="80")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert max(map(len, shown.stdout.splitlines()[:-1])) <= 80
    document = plan_of(config_file, "--fit", limits)
    chosen = document["chosen"]
    assert document["fits"]
    assert chosen == next(candidate for candidate in document["candidates"] if candidate["fits"])
    assert (
        f"qwonnx export {config_file.parent} OUT --recipe {chosen['name']}"
        f" --weight-block-size {chosen['weight_block_size']}"
    ) in " ".join(shown.stdout.split())


def test_what_does_not_fit_is_said_with_status_1(config_file: Path) -> None:
    limits = "memory=10GB,disk=10GB,context=32k,sequences=4"
    shown = qwonnx("plan", config_file, "--fit", limits)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert "Nothing fits" in shown.stdout
    assert "- disk: " in shown.stdout
    assert "- memory: " in shown.stdout
    as_json = qwonnx("plan", config_file, "--fit", limits, "--json")
    document = json.loads(as_json.stdout)
    assert (as_json.returncode, document["fits"], document["chosen"]) == (1, False, None)
    assert document["nearest"]["missing_disk"] > 0


@pytest.mark.parametrize(
    ("limits", "remedies"),
    [
        ("memory=24GB,context=256k", ["- memory: ", "- or context="]),
        ("memory=24GB,context=32k,sequences=64", ["- memory: ", "- or sequences="]),
        ("memory=40GB,disk=17GB", ["- disk: ", "- or a smaller model"]),
        ("memory=1GB", ["- memory: ", "- or a smaller model"]),
    ],
)
def test_what_would_fit_is_said_too(config_file: Path, limits: str, remedies: list[str]) -> None:
    shown = qwonnx("plan", config_file, "--weights", "int4", "--kv", "float32", "--fit", limits)
    assert shown.returncode == 1
    lines = [line for line in shown.stdout.splitlines() if line.startswith("- ")]
    assert len(lines) == len(remedies)
    assert all(line.startswith(remedy) for line, remedy in zip(lines, remedies, strict=True))
    if "context" in remedies[1]:  # the printed value is right
        smaller = limits.replace("256k", lines[1].split("=")[1].split()[0])
        assert qwonnx("plan", config_file, "--weights", "int4", "--kv", "float32", "--fit", smaller).returncode == 0


@pytest.mark.parametrize("tied", [False, True])
def test_the_recipe_of_the_page_plans_and_exports(tmp_path: Path, tied: bool) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    recipe = tmp_path / "page.toml"
    recipe.write_text(page.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    checkpoint = write_tiny(tmp_path / "checkpoint", tie_word_embeddings=tied, vision=False, text_overrides=layers)
    planned = plan_of(checkpoint, "--recipe", recipe)["recipes"][0]["artifact"]["weights"]
    manifest = export_checkpoint(checkpoint, tmp_path / "out", ExportOptions(recipe=Recipe.load(recipe)))
    assert planned == sum(entry.size for entry in manifest.files if entry.path.startswith("weights-"))


def test_options_that_the_plan_prints_are_options_of_the_plan(config_file: Path) -> None:
    both = plan_of(config_file, "--weights", "int8", "--recipe", "none")
    assert [recipe["name"] for recipe in both["recipes"]] == ["int8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context", "x"], "--context is 'x'"),
        (["--kv", "fp7"], "--kv is 'fp7'"),
        (["--weights", "int5"], "int5"),
        (["--weights", "int8", "--recipe", "balanced"], "the recipe balanced starts from int4, not from int8"),
        (["--recipe", "tiny"], "there is no recipe 'tiny': use smallest, balanced, best, cuda, none, or a TOML file"),
        (["--recipe", "x.toml"], "cannot read the recipe x.toml"),
        (["--weight-block-size", "48"], "weight_block_size 48"),
        (["--bandwidth", "fast"], "give a rate as in 50GB/s"),
        (["--fit", "ram=1GB"], "ram=1GB"),
        (["--fit", "platform=moon"], "platform is 'moon': use one of lambda, lambda-zip"),
        (["--fit", "platform=lambda,memory=11GiB"], "memory is '11GiB', and AWS Lambda, 10 GB has 10737418240 bytes"),
        (["--fit", "platform=lambda", "--target", "cuda"], "AWS Lambda, 10 GB has no GPU"),
        (["--fit", "memory=1 x"], "memory is '1 x'"),
        (["--revision", "main"], "leave --revision out"),
    ],
)
def test_what_is_wrong_is_one_line(config_file: Path, arguments: list[str], message: str) -> None:
    assert message in error_line(qwonnx("plan", config_file, *arguments))


def test_a_file_that_is_no_config_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert "LlamaForCausalLM" in error_line(qwonnx("plan", tmp_path))
    assert "does not exist" in error_line(qwonnx("plan", tmp_path / "nowhere"))


def test_planning_needs_nothing_of_the_exporters_packages(config_file: Path) -> None:
    heavy = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors", "huggingface_hub", "onnxruntime")
    program = f"import sys; sys.modules.update(dict.fromkeys({heavy!r})); {QWONNX[2]}"
    for options in ([], ["--json"], ["--fit", "memory=1TB"]):
        command = [sys.executable, "-c", program, "plan", str(config_file), *options]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr


def test_a_target_without_plans_is_refused_in_a_line(config_file: Path) -> None:
    assert "there are no plans for the target rtx yet" in error_line(qwonnx("plan", config_file, "--target", "rtx"))


def test_a_plan_for_cards_says_which_of_them_fit_and_what_their_bandwidth_allows(config_file: Path) -> None:
    shown = qwonnx("plan", config_file, "--target", "cuda", "--kv", "int8", COLUMNS="80")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert max(map(len, shown.stdout.splitlines())) <= 80
    for words in ("Memory of a card to serve 1 at once, int8 keys", "spare row", "H200, 141 GB", "Tokens/s at most"):
        assert words in shown.stdout
    assert "…" not in shown.stdout
    document = plan_of(config_file, "--target", "cuda", "--context", "16k", "--sequences", 4)
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    assert {key for key in _keys(document) if f"`{key}`" not in page} == set()
    assert document["assumptions"]["kv"] == "float16"
    assert document["model"]["kv_bytes_per_token"] == 20_480
    for recipe in document["recipes"]:
        use = next(use for use in recipe["memory"] if use["context"] == 16_384)
        assert use["required"] == sum(use.values()) - use["context"] - use["loading"] - use["required"]
        for one in recipe["deployments"]:
            assert one["fits"] == (use["required"] <= one["memory"]) == (one["largest_context"] >= 16_384)
            assert one["tokens_per_second"] == pytest.approx(4 * one["bandwidth"] / recipe["decode"]["bytes_per_step"])


def test_what_fits_a_card_is_exported_for_it(config_file: Path) -> None:
    shown = qwonnx("plan", config_file, "--target", "cuda", "--fit", "memory=24GB,context=64k", COLUMNS="80")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"qwonnx export {config_file.parent} OUT --target cuda --" in " ".join(shown.stdout.split())


def test_35b_fits_no_function_of_lambda_and_a_container_of_cloud_run(config_file: Path) -> None:
    shown = qwonnx("plan", config_file, "--fit", "platform=lambda,context=4k", COLUMNS="80")
    assert shown.returncode == 1
    assert "Nothing fits AWS Lambda, 10 GB. The nearest candidate:" in shown.stdout
    assert "no instance of AWS Lambda, 10 GB has more" in shown.stdout
    fitting = qwonnx("plan", config_file, "--fit", "platform=cloud-run,context=4k", COLUMNS="80")
    assert fitting.returncode == 0
    assert "page cache" in fitting.stdout
