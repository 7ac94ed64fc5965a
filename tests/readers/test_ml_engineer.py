"""An ML engineer: installs as README.md says, without a compiler, and tries all of it on the miniature."""

from __future__ import annotations

import json

import pytest

from tests.readers.reader import Reader, commands_of, python_of

pytestmark = pytest.mark.soak

READER = "ml"
MINIATURE = "tests/miniature/checkpoint"
ANSWER = "Ujerumani"

# A random adapter of all query projections, as peft writes it.
_ADAPTER = f"""
import json, re
from pathlib import Path
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

random, tensors = np.random.default_rng(1), {{}}
with safe_open("{MINIATURE}/model.safetensors", "np") as file:
    for name in file.keys():
        found = re.search(r"^model\\.(?:language_model\\.)?(layers\\.\\d+\\.self_attn\\.q_proj)\\.weight", name)
        if found:
            outputs, inputs = file.get_slice(name).get_shape()
            for factor, shape in (("A", (4, inputs)), ("B", (outputs, 4))):
                key = f"base_model.model.model.{{found[1]}}.lora_{{factor}}.weight"
                tensors[key] = random.normal(0, 0.02, shape).astype(np.float32)
folder = Path("adapter")
folder.mkdir()
save_file(tensors, folder / "adapter_model.safetensors")
config = {{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}}
config["base_model_name_or_path"] = "{MINIATURE}"
(folder / "adapter_config.json").write_text(json.dumps(config))
print(len(tensors))
"""

# A notebook runs its cells inside of an event loop, and keeps the model from cell to cell.
_NOTEBOOK = """
import asyncio
from dataclasses import dataclass
from typing import Literal

from qwonnx import LLM, AsyncLLM

@dataclass
class Verdict:
    language: Literal["Swahili", "Georgian"]
    sure: bool

async def cells():
    llm = LLM("qwen-int4")
    print(repr(llm))
    answer = llm.chat('Which language is "Habari ya asubuhi"?', schema=Verdict, thinking=False, max_tokens=128)
    print(answer.parsed)
    for piece in llm.chat("What is Germany called in Swahili?", thinking=False, stream=True):
        print(piece, end="|")
    print()
    llm.close()
    async with await AsyncLLM.open("qwen-int4") as other:
        print(await other.chat("What is Germany called in Swahili?", thinking=False))

asyncio.run(cells())
"""


def test_the_installation_brings_kernels_without_a_compiler(reader: Reader) -> None:
    reader.run("! command -v c++ g++ clang++ cc")
    install, activate = commands_of("README.md", "infra/install.py")
    said = reader.run(f"{install}\n{activate}\nqwonnx --version\ncommand -v qwonnx")
    assert "Error" not in said
    assert f"/home/{READER}/qwonnx/.venv/bin/qwonnx" in said
    reader.run("ls runtime/native/libqwonnx_native.so")
    packages = json.loads(reader.run("pip list --format=json"))
    assert not [package["name"] for package in packages if package["name"].startswith("nvidia-")]


def test_every_command_of_the_readme(reader: Reader) -> None:
    said = {}
    for line in commands_of("README.md", "qwonnx export"):
        if line.startswith("qwonnx serve"):
            continue  # test_platform_engineer.py
        said[line.split()[1]] = reader.run(line.replace("Qwen/Qwen3.5-35B-A3B", MINIATURE))
    assert list(said) == ["plan", "export", "bake", "inspect", "verify", "eval", "generate", "batch"]
    assert said["generate"].strip().endswith(ANSWER)
    assert "quantised as its recipe says" in said["verify"].splitlines()[-1]
    counted = reader.run("wc --lines < answers.jsonl; wc --lines < docs/examples/requests.jsonl").split()
    assert counted[0] == counted[1]


def test_two_lines_of_python(reader: Reader) -> None:
    assert reader.python(python_of("README.md")).strip().endswith(ANSWER)
    first = reader.python(python_of("README.md").replace("qwen-int4", MINIATURE))
    assert first.strip().endswith(ANSWER)
    assert "export" in first, "a checkpoint is exported first, and it says so"
    assert reader.python(python_of("README.md").replace("qwen-int4", MINIATURE)).strip() == ANSWER


def test_check_and_an_export_that_verifies_itself(reader: Reader) -> None:
    assert reader.run(f"qwonnx check {MINIATURE}")
    said = reader.run(f"qwonnx export {MINIATURE} checked --verify")
    assert "quantised as its recipe says" in said.splitlines()[-1]
    exact = reader.run(f"qwonnx export {MINIATURE} exact --weights fp32 --verify")
    assert "equal up to rounding" in exact.splitlines()[-1]


@pytest.mark.parametrize("recipe", ["smallest", "best", "docs/examples/recipe.toml"])
def test_a_recipe(reader: Reader, recipe: str) -> None:
    reader.run(f"qwonnx export {MINIATURE} of-recipe --recipe {recipe} --force")
    report = json.loads(reader.run("qwonnx eval of-recipe --suite docs/examples/questions.jsonl --json 2> /dev/null"))
    assert report
    assert reader.run('qwonnx generate of-recipe --no-thinking --chat "What is Germany called in Swahili?"')


def test_an_adapter_is_merged_and_verified(reader: Reader) -> None:
    assert int(reader.python(_ADAPTER)) > 0
    reader.run(f"qwonnx check {MINIATURE} --adapter adapter")
    reader.run(f"qwonnx export {MINIATURE} tuned --adapter adapter")
    verify = f"qwonnx verify tuned --against {MINIATURE} --adapter adapter"
    without = reader.run(verify)
    assert "peft did not repeat it here: it is not installed" in without
    assert "quantised as its recipe says" in without.splitlines()[-1]
    reader.run("pip install --quiet peft")
    with_peft = reader.run(verify)
    assert "peft's merge of the adapters differs by" in with_peft
    assert "quantised as its recipe says" in with_peft.splitlines()[-1]
    assert "not the same model" in reader.run(f"qwonnx verify tuned --against {MINIATURE}", status=1)


def test_cells_of_a_notebook(reader: Reader) -> None:
    shown = reader.python(_NOTEBOOK).splitlines()
    assert shown[0].startswith("LLM(")
    assert any(line.startswith("Verdict(language='") for line in shown)
    assert shown[-2].replace("|", "") == shown[-1] == ANSWER
