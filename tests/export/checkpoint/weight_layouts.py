"""Layouts of weights and of config.json; a new one is a new line here and a row in docs/checkpoints.md.

The file is longer than most, because it is a table of layouts.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tests.checkpoints.every_format import auto_round, compressed, write_format
from tests.checkpoints.gguf_files import write_gguf
from tests.checkpoints.torch_files import write_torch
from tests.export.checkpoint.layout_edits import (
    INDEX,
    SINGLE,
    Edit,
    Layout,
    also,
    config,
    file,
    moved,
    nothing,
    only,
    read,
    renamed,
    shards,
    tensors,
    together,
    without,
    write,
)

_LORA = {"peft_type": "LORA", "base_model_name_or_path": "me/base", "r": 8, "lora_alpha": 16}
_CODES = torch.zeros(4, 8, dtype=torch.int32)
_QUERY = "model.layers.1.self_attn.q_proj"


def _other_model(folder: Path) -> None:
    """model.safetensors of another training beside the shards."""
    shutil.copy(folder.parent / "other" / SINGLE, folder)


def _this_model(folder: Path) -> None:
    """model.safetensors of the same training, and shards of another one."""
    shutil.copy(folder.parent / "plain" / SINGLE, folder)
    for path in shards(folder):
        path.write_bytes(b"")


def _links(folder: Path) -> None:
    blobs = folder.parent / f"{folder.name} blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(Path("..") / blobs.name / str(number))


def _without_shards(*numbers: int) -> Edit:
    def edit(folder: Path) -> None:
        for number, path in enumerate(shards(folder)):
            if number in numbers or not numbers:
                path.unlink()

    return edit


def _adapter(name: str = "adapter_model.safetensors", **fields: object) -> Edit:
    return together(
        lambda folder: write(folder / "adapter_config.json", _LORA | fields),
        lambda folder: (folder / name).write_bytes(b"x"),
    )


def _wrapped_layers(name: str) -> str:
    return name.replace("layers.1.", "layers.1._checkpoint_wrapped_module.").replace("model.", "model._orig_mod.", 1)


def _index_without_a_tensor(folder: Path) -> None:
    index = read(folder / INDEX)
    index["weight_map"].pop("model.layers.1.self_attn.q_norm.weight")
    write(folder / INDEX, index)


def _index_of_another_model(folder: Path) -> None:
    index = read(folder / INDEX)
    index["weight_map"] = {name.replace("layers.1", "layers.9"): at for name, at in index["weight_map"].items()}
    write(folder / INDEX, index)


def _other_names(folder: Path) -> None:
    index = read(folder / INDEX)
    names = {path.name: f"part-{letter}.safetensors" for path, letter in zip(shards(folder), "abc", strict=True)}
    index["weight_map"] = {tensor: names[at] for tensor, at in index["weight_map"].items()}
    write(folder / INDEX, index)
    for old, new in names.items():
        (folder / old).rename(folder / new)


def _two_series(folder: Path) -> None:
    (folder / INDEX).unlink()
    for path in shards(folder):
        shutil.copy(path, folder / path.name.replace("model", "older", 1))


def _quantized(**fields: object) -> Edit:
    return config(quantization_config=fields)


def _nested(folder: Path) -> None:
    flat = read(folder / "config.json")
    whole = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe", "text_config": flat}
    write(folder / "config.json", whole)


def _floats(folder: Path) -> None:
    tensors(lambda found: {name: tensor.float() for name, tensor in found.items()})(folder)
    config(dtype="float32")(folder)


def _in_format(name: str) -> Edit:
    """A format of every_format.py, for the experts."""
    pattern = r"\.experts\.\d+\.(gate|up|down)_proj"
    return lambda folder: _written(folder, lambda source, made: write_format(source, made, name, pattern=pattern))


def _merged(folder: Path) -> None:
    """What mergekit writes beside the tensors."""
    write(folder / "mergekit_config.yml", "merge_method: linear")
    write(folder / "README.md", "# merge")


def _pruned_experts(folder: Path, router_rows: int = 5) -> None:
    """The experts 1, 3, 4, 8 and 13 of 16, renumbered, as REAP leaves them; 3 are chosen."""
    kept = (1, 3, 4, 8, 13)

    def prune(found: dict[str, Tensor]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for name, tensor in found.items():
            expert = re.search(r"\.experts\.(\d+)\.", name)
            if expert is None:
                is_router = name.endswith(".mlp.gate.weight")
                made[name] = tensor[list(kept)][:router_rows].contiguous() if is_router else tensor
            elif int(expert[1]) in kept:
                made[name.replace(expert[0], f".experts.{kept.index(int(expert[1]))}.")] = tensor
        return made

    tensors(prune)(folder)
    config(num_experts=5, num_experts_per_tok=3)(folder)


def _trimmed_vocabulary(folder: Path, *, with_tokenizer: bool = True) -> None:
    """1,037 tokens: the base tokens but the last 212 merges, then the added ones."""
    size, num_added = 1037, 33
    document = read(folder / "tokenizer.json")
    base = size - num_added
    names = {f"model.{name}.weight" if name != "lm_head" else "lm_head.weight" for name in ("embed_tokens", "lm_head")}
    num_all = len(document["model"]["vocab"])
    rows = [*range(base), *range(num_all, num_all + num_added)]
    tensors(lambda found: {k: v[rows].contiguous() if k in names else v for k, v in found.items()})(folder)
    config(vocab_size=size)(folder)
    if with_tokenizer:
        lost = num_all - base
        model = document["model"]
        model["vocab"] = {token: number for token, number in model["vocab"].items() if number < base}
        model["merges"] = model["merges"][:-lost]
        document["added_tokens"] = [one | {"id": one["id"] - lost} for one in document["added_tokens"]]
        write(folder / "tokenizer.json", document)
        generation = read(folder / "generation_config.json")
        ends = [number - lost for number in generation["eos_token_id"]]
        write(folder / "generation_config.json", generation | {"eos_token_id": ends})


def _layers(*kept: int, **fields: object) -> Edit:
    """These layers of two, in this order: removed, turned or copied."""

    def edit(folder: Path) -> None:
        def choose(found: dict[str, Tensor]) -> dict[str, Tensor]:
            made = {name: tensor for name, tensor in found.items() if ".layers." not in name}
            for number, layer in enumerate(kept):
                begin = f"model.layers.{layer}."
                for name in found:
                    if name.startswith(begin):
                        made[name.replace(begin, f"model.layers.{number}.")] = found[name].clone()
            return made

        tensors(choose)(folder)
        types = read(folder / "config.json")["layer_types"]
        described = {"num_hidden_layers": len(kept), "layer_types": [types[layer] for layer in kept]}
        config(**described | fields)(folder)

    return edit


def _torch(folder: Path, **options: int) -> None:
    """The same tensors in PyTorch's files."""
    write_torch(folder, folder.parent / "torch", **options)
    shutil.rmtree(folder)
    (folder.parent / "torch").rename(folder)


def _saved(content: object) -> Edit:
    """pytorch_model.bin of other content, and no other weights."""

    def edit(folder: Path) -> None:
        (folder / SINGLE).unlink()
        torch.save(content, folder / "pytorch_model.bin")

    return edit


def _old_torch(folder: Path) -> None:
    (folder / SINGLE).unlink()
    tensors = {"a": torch.zeros(2)}
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def _gguf(type_name: str = "F32", *edits: Edit, num_parts: int = 1, **metadata: object) -> Edit:
    """Nothing but the model in GGUF, then further edits."""

    def edit(folder: Path) -> None:
        made = write_gguf(folder, folder.parent / "model.gguf", type_name, num_parts, **metadata)
        only()(folder)
        for path in made.parent.glob("model*.gguf"):
            path.rename(folder / path.name)
        for one in edits:
            one(folder)

    return edit


def _cut_gguf(folder: Path) -> None:
    path = folder / "model.gguf"
    path.write_bytes(path.read_bytes()[:-100])


def _another_type(folder: Path) -> None:
    path = folder / "model.gguf"
    content = path.read_bytes()
    place = content.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8  # after its size
    path.write_bytes(content[:place] + (20).to_bytes(4, "little") + content[place + 4 :])


def _written(folder: Path, writer: Callable[[Path, Path], object]) -> None:
    """Put what a writer of a quantised format makes of a folder in its place."""
    made = folder.parent / "quantised"
    writer(folder, made)
    shutil.rmtree(folder)
    made.rename(folder)


ACCEPTED = (
    Layout("one model.safetensors", nothing, transformers_loads_it=True),
    Layout("shards and their index", nothing, "shards", transformers_loads_it=True),
    Layout("shards without an index", without(INDEX), "shards"),
    Layout("one file of another name", moved(SINGLE, "weights.safetensors")),
    Layout("one tensor for each expert", nothing, "experts", transformers_loads_it=True),
    Layout("links, as in the hub's cache", _links, "shards", transformers_loads_it=True),
    Layout(
        "model.safetensors and an index without its files (save_pretrained into the model's own folder)",
        together(_without_shards(), lambda folder: _this_model(folder)),
        "shards",
        transformers_loads_it=True,
    ),
    Layout("model.safetensors and older shards, with --weights-file model.safetensors", _this_model, "shards", SINGLE),
    Layout("shards and another model.safetensors, with --weights-file and the index", _other_model, "shards", INDEX),
    Layout(
        "shards of other names and another model.safetensors, with --weights-file and one of the shards",
        together(_other_names, _other_model),
        "shards",
        "part-b.safetensors",
    ),
    Layout(
        "two series of shards, with --weights-file and a file of one",
        _two_series,
        "shards",
        "model.safetensors-00001-of-00003.safetensors",
    ),
    Layout(
        "files of other formats beside model.safetensors",
        together(file("model-Q4_K_M.gguf"), file("pytorch_model.bin"), file("consolidated.safetensors")),
        transformers_loads_it=True,
    ),
    Layout("an adapter in a sub-folder", file("checkpoint-500/adapter_config.json", "{}"), transformers_loads_it=True),
    Layout("names after _orig_mod. (torch.compile)", renamed(lambda name: f"_orig_mod.{name}")),
    Layout("names after module. (data parallelism)", renamed(lambda name: f"module.{name}")),
    Layout("names after module._orig_mod.", renamed(lambda name: f"module._orig_mod.{name}")),
    Layout("names after base_model.model. (peft, merged)", renamed(lambda name: f"base_model.model.{name}")),
    Layout("names after model. (Lightning)", renamed(lambda name: f"model.{name}")),
    Layout("wrappers within names (FSDP, activation checkpointing)", renamed(_wrapped_layers)),
    Layout(
        "names after language_model.model. and language_model.lm_head.", renamed(lambda name: f"language_model.{name}")
    ),
    Layout("lm_head. after model.", renamed(lambda name: name.replace("lm_head.", "model.lm_head."))),
    Layout("names of the text model alone (embed_tokens., layers.)", renamed(lambda name: name.removeprefix("model."))),
    Layout("rotary buffers (inv_freq)", also(model__rotary_emb__inv_freq=torch.zeros(4)), transformers_loads_it=True),
    Layout(
        "a value head (v_head.) or a reward head (score.)",
        also(v_head__summary__weight=torch.zeros(1, 128), score__weight=torch.zeros(1, 128)),
        transformers_loads_it=True,
    ),
    Layout(
        "a draft head or a vision tower under other names (model.mtp., visual.)",
        also(model__mtp__norm__weight=torch.zeros(128), visual__norm__weight=torch.zeros(8)),
    ),
    Layout("config.json without architectures", config(architectures=...), transformers_loads_it=True),
    Layout(
        "a flat config.json that names ...ForConditionalGeneration",
        config(architectures=["Qwen3_5MoeForConditionalGeneration"]),
        transformers_loads_it=True,
    ),
    Layout(
        "a flat config.json beside weights of the whole model",
        together(
            renamed(lambda name: name.replace("model.", "model.language_model.", 1)),
            also(model__visual__norm__weight=torch.zeros(8)),
        ),
        transformers_loads_it=True,
    ),
    Layout("config.json of the whole model beside weights of the text model", _nested, transformers_loads_it=True),
    Layout("a flat config.json of the type qwen3_5_moe", config(model_type="qwen3_5_moe")),
    Layout("float tensors in F16 or F32", _floats, same_weights=False),
    *(
        Layout(name, _in_format(written), "experts", same_weights=False)
        for name, written in {
            "FP8 in blocks of 128 x 128": "fp8-block",
            "GPTQ, format 1, 4 or 8 bits": "gptq",
            "GPTQ with desc_act": "gptq-desc-act",
            "AutoRound, packing_format auto_round:auto_gptq": "auto-round-gptq",
            "AutoRound, packing_format auto_round:auto_awq": "auto-round-awq",
            "AWQ, gemm": "awq",
            "compressed-tensors, pack-quantized, W4A16": "w4a16",
            "compressed-tensors, pack-quantized, W4A16 with zero points": "w4a16-asymmetric",
            "compressed-tensors, pack-quantized, W8A16": "w8a16",
            "compressed-tensors, pack-quantized, W8A16 with zero points": "w8a16-asymmetric",
            "compressed-tensors, int-quantized": "w8a8",
            "compressed-tensors, float-quantized, a scale for each row (FP8-dynamic)": "fp8-dynamic",
            "compressed-tensors, float-quantized, a scale for each matrix": "fp8-tensor",
            "compressed-tensors, nvfp4-pack-quantized": "nvfp4",
            "ModelOpt, NVFP4, described in hf_quant_config.json": "nvfp4-modelopt",
            "bitsandbytes, nf4": "nf4",
            "bitsandbytes, nf4 with double quantisation": "nf4-nested",
            "bitsandbytes, int8": "int8",
        }.items()
    ),
    Layout("a merge of mergekit", _merged, "shards", transformers_loads_it=True),
    Layout("a merge that repeats layers (passthrough)", _layers(1, 0, 1, 0, 0), same_weights=False),
    Layout("layers removed, with the first one full", _layers(1, 0), same_weights=False),
    Layout("layers removed, one left", _layers(1), same_weights=False),
    Layout("experts removed (REAP), 5 of 16 with 3 chosen", _pruned_experts, "experts", same_weights=False),
    Layout("a trimmed vocabulary of 1,037 tokens", _trimmed_vocabulary, same_weights=False),
    Layout("pytorch_model.bin", _torch, transformers_loads_it=True),
    Layout(
        "shards of pytorch_model.bin and their index",
        lambda folder: _torch(folder, num_shards=3),
        transformers_loads_it=True,
    ),
    Layout(
        "shards of pytorch_model.bin without an index",
        together(lambda folder: _torch(folder, num_shards=3), without("pytorch_model.bin.index.json")),
    ),
    Layout(
        "a PyTorch file of another name, with --weights-file",
        together(_torch, moved("pytorch_model.bin", "consolidated.00.pth")),
        weights_file="consolidated.00.pth",
    ),
    Layout("a GGUF file of llama.cpp, F32", _gguf()),
    Layout("a GGUF file, BF16", _gguf("BF16")),
    Layout("a GGUF file, F16", _gguf("F16"), same_weights=False),
    Layout("a GGUF file, Q8_0", _gguf("Q8_0"), same_weights=False),
    Layout("a GGUF file, Q4_0", _gguf("Q4_0"), same_weights=False),
    Layout("a GGUF file, Q4_K", _gguf("Q4_K"), "wide", same_weights=False),
    Layout("a GGUF file, Q6_K", _gguf("Q6_K"), "wide", same_weights=False),
    Layout("a GGUF file, Q4_K, with Q8_0 where 256 does not divide the rows", _gguf("Q4_K"), same_weights=False),
    Layout("a GGUF model in several files (gguf-split)", _gguf(num_parts=3)),
    Layout("a GGUF file with its vision tower (mmproj-) beside it", _gguf("F32", file("mmproj-F16.gguf"))),
    Layout("a GGUF file beside config.json", _gguf("F32", file("config.json", "{}"))),
    Layout(
        "several models in GGUF, with --weights-file and one of them",
        _gguf("F32", file("a-F16.gguf")),
        weights_file="model.gguf",
    ),
)

REFUSED = (
    Layout("shards with their index, and another model.safetensors", _other_model, "shards"),
    Layout(
        "some shards of an index, and another model.safetensors", together(_without_shards(0), _other_model), "shards"
    ),
    Layout("an index without its files, and nothing else", _without_shards(), "shards"),
    Layout(
        "an index without its files, and files of other names",
        together(_without_shards(1, 2), lambda folder: shards(folder)[0].rename(folder / "a.safetensors")),
        "shards",
    ),
    Layout("an index with some of its files", _without_shards(1), "shards"),
    Layout("a series with some of its files", together(without(INDEX), _without_shards(1)), "shards"),
    Layout("two series of shards", _two_series, "shards"),
    Layout(
        "shards without an index, and a file of another name",
        together(without(INDEX), file("consolidated.safetensors")),
        "shards",
    ),
    Layout("an index that misses a tensor", _index_without_a_tensor, "shards"),
    Layout("an index of another model", _index_of_another_model, "shards"),
    Layout("a malformed index", file(INDEX, "{}"), "shards"),
    Layout("--weights-file and a name that is not there", nothing, weights_file="a.safetensors"),
    Layout(
        "a file that was cut",
        lambda folder: (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-1]),
    ),
    Layout("config.json of another model", config(hidden_size=256)),
    Layout("config.json with more layers", config(num_hidden_layers=3, layer_types=["linear_attention"] * 3)),
    Layout(
        "layers removed, and layer_types of before", _layers(1, 0, layer_types=["linear_attention", "full_attention"])
    ),
    Layout("layers removed, and layer_types of another length", _layers(1, layer_types=["full_attention"] * 2)),
    Layout(
        "a merge that repeats layers, and config.json of before",
        _layers(0, 1, 0, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"]),
    ),
    Layout("experts removed, and their number of before", together(_pruned_experts, config(num_experts=16)), "experts"),
    Layout("experts removed, and not from the router", lambda folder: _pruned_experts(folder, 4), "experts"),
    Layout("fewer experts than are chosen", together(_pruned_experts, config(num_experts_per_tok=8)), "experts"),
    Layout(
        "a trimmed vocabulary, and the tokenizer of before",
        lambda folder: _trimmed_vocabulary(folder, with_tokenizer=False),
    ),
    Layout("a LoRA adapter beside the weights", _adapter()),
    Layout("a DoRA adapter beside the weights", _adapter(use_dora=True)),
    Layout("adapter_config.json beside the weights", lambda folder: write(folder / "adapter_config.json", _LORA)),
    Layout("an adapter with the config.json of its base", together(without(SINGLE), _adapter())),
    Layout("an adapter alone", together(only(), _adapter())),
    Layout("an adapter in a PyTorch file", together(only(), _adapter("adapter_model.bin", peft_type="IA3"))),
    Layout(
        "LoRA tensors among the weights",
        also(**{f"{_QUERY}.lora_A.default.weight".replace(".", "__"): torch.zeros(8, 128)}),
    ),
    Layout("weights in peft's wrapper", renamed(lambda name: name.replace("q_proj.", "q_proj.base_layer."))),
    Layout(
        "a file that is a pointer of Git LFS", file(SINGLE, "version https://git-lfs.github.com/spec/v1\noid sha256:0")
    ),
    Layout(
        "empty tensors of DeepSpeed ZeRO 3",
        tensors(lambda found: {name: torch.zeros(0) if "q_proj" in name else t for name, t in found.items()}),
    ),
    Layout("several models in GGUF", together(only(), file("a-F16.gguf"), file("b-Q8_0.GGUF"))),
    Layout("--weights-file and a GGUF file that is not there", _gguf(), weights_file="a.gguf"),
    Layout("a GGUF file that is not one", together(only(), file("model-Q4_K_M.gguf"))),
    Layout("a GGUF file that was cut", _gguf("F32", _cut_gguf)),
    Layout("a GGUF series with some of its files", _gguf("F32", without("model-00002-of-00003.gguf"), num_parts=3)),
    Layout("a part of a GGUF series under another name", _gguf("F32", split__count=3)),
    Layout("a GGUF file of another architecture", _gguf(general__architecture="llama")),
    Layout("an adapter in GGUF", _gguf(general__type="adapter")),
    Layout("a GGUF file with a type that is not read", _gguf("F32", _another_type)),
    Layout("a GGUF file with metadata that may change the model", _gguf(qwen35moe__attention__sliding_window=128)),
    Layout("a GGUF file without a field", _gguf(qwen35moe__embedding_length=None)),
    Layout("a GGUF file with rotary scaling that is not supported", _gguf(qwen35moe__rope__scaling__type="longrope")),
    Layout("a GGUF file with another pre-tokenizer", _gguf(tokenizer__ggml__pre="llama-bpe")),
    Layout("a GGUF file without a tokenizer", _gguf(tokenizer__ggml__tokens=None)),
    Layout("a PyTorch file that is not one", together(without(SINGLE), file("pytorch_model.bin"))),
    Layout("a PyTorch file of the format before version 1.6", _old_torch),
    Layout("a PyTorch file of a trainer (tensors within other objects)", _saved({"model": {}, "step": 3})),
    Layout("a PyTorch file with the code of its classes", _saved({"a": _CODES, "path": Path("a")})),
    Layout("a PyTorch file with a transposed view", _saved({"a": _CODES.T})),
    Layout(
        "pytorch_model.bin and shards with their index",
        together(lambda folder: _torch(folder, num_shards=2), file("pytorch_model.bin")),
    ),
    Layout(
        "some of the shards of pytorch_model.bin",
        together(lambda folder: _torch(folder, num_shards=2), without("pytorch_model-00002-of-00002.bin")),
    ),
    Layout("consolidated.00.pth", together(without(SINGLE), file("consolidated.00.pth"))),
    Layout("a DeepSpeed checkpoint", together(without(SINGLE), file("zero_to_fp32.py"))),
    Layout("an FSDP checkpoint", together(without(SINGLE), file("__0_0.distcp"))),
    Layout("a Flax or TensorFlow file", together(without(SINGLE), file("flax_model.msgpack"))),
    Layout("weights.npz", together(without(SINGLE), file("weights.npz"))),
    Layout("a model in ONNX", together(without(SINGLE), file("model.onnx"))),
    Layout("an artifact of qwonnx", together(only(), file("manifest.json", "{}"))),
    Layout("a suffix in capital letters", moved(SINGLE, "model.SAFETENSORS")),
    Layout(
        "checkpoints in sub-folders",
        together(only(), file("training_args.bin"), file("checkpoint-500/config.json", "{}")),
    ),
    Layout("weights without config.json", without("config.json")),
    Layout("no weights", without(SINGLE)),
    Layout("a conversion for MLX", tensors(lambda found: found, metadata="mlx")),
    Layout("a conversion for MLX, quantised", config(quantization={"group_size": 64, "bits": 4})),
    Layout(
        "a conversion for MLX, without its mark",
        tensors(lambda found: {n: t.transpose(1, 2).contiguous() if "conv1d" in n else t for n, t in found.items()}),
    ),
    Layout("AWQ for gemv", _quantized(quant_method="awq", bits=4, group_size=128, version="gemv")),
    Layout(
        "bitsandbytes in 4 bits of another type",
        _quantized(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="af4"),
    ),
    Layout(
        "bitsandbytes without quantization_config", also(model__layers__0__mlp__gate__weight__absmax=torch.zeros(8))
    ),
    Layout("compressed-tensors, mxfp4-pack-quantized", _quantized(**compressed("mxfp4-pack-quantized"))),
    Layout("compressed-tensors, 3 bits", _quantized(**compressed("pack-quantized", num_bits=3, group_size=128))),
    Layout(
        "compressed-tensors with rotated weights",
        _quantized(**compressed("pack-quantized", group_size=128), transform_config={"config_groups": {"R1": {}}}),
    ),
    Layout(
        "compressed-tensors, sparse",
        _quantized(**compressed("pack-quantized", group_size=128), sparsity_config={"format": "sparse-24-bitmask"}),
    ),
    Layout(
        "compressed-tensors whose groups do not describe the tensors",
        together(_in_format("w4a16"), _quantized(**compressed("pack-quantized", group_size=64))),
        "experts",
    ),
    Layout("ModelOpt in another format", _quantized(quant_method="modelopt", quant_algo="W4A8_AWQ")),
    Layout(
        "ModelOpt's side file for another format",
        file("hf_quant_config.json", '{"quantization": {"quant_algo": "NVFP4_AWQ"}}'),
    ),
    Layout("a side file of ModelOpt that describes nothing", file("hf_quant_config.json", '{"producer": {}}')),
    Layout("ModelOpt without its side file", also(model__layers__0__mlp__gate__weight_scale_2=torch.zeros(1))),
    Layout("AutoGPTQ's side file", file("quantize_config.json", '{"bits": 4, "group_size": 128}')),
    Layout("GPTQ or AWQ without quantization_config", also(model__layers__0__mlp__x__qweight=_CODES)),
    Layout("FP8 without quantization_config", also(model__layers__0__mlp__x__weight_scale_inv=torch.zeros(1))),
    Layout("HQQ", _quantized(quant_method="hqq")),
    Layout(
        "AutoRound in another packing format",
        _quantized(**auto_round("auto_round:llm_compressor")),
    ),
    Layout(
        "AutoRound, not symmetric",
        _quantized(**auto_round("auto_round:auto_gptq", sym=False)),
    ),
    Layout("config.json with transformers_weights", config(transformers_weights="a.safetensors")),
    Layout("a model for sequence classification", config(architectures=["Qwen3_5MoeForSequenceClassification"])),
    Layout("tensors that nothing is known about", also(model__layers__0__extra__weight=torch.zeros(8))),
    Layout("two tensors for one weight", also(_orig_mod__lm_head__weight=torch.zeros(8))),
)
