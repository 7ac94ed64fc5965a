"""`qwonnx inspect`: show an artifact's manifest and its baked prefixes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from qwonnx.handlers.cli.arguments import ArtifactArgument
from qwonnx.handlers.cli.engine_options import DeviceOption, runtime_settings
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.fitting_table import FittingTable
from qwonnx.handlers.cli.tables import add_row, facts_table, weights_table
from qwonnx.runtime.artifact.compiled import CompiledFolder, compiled_folders
from qwonnx.runtime.artifact.file_names import DECODER
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.artifact.manifest import AdapterFacts, Manifest, slot_width
from qwonnx.runtime.cache.baked_prefixes import FOLDER, PrefixFile, prefix_files
from qwonnx.runtime.cache.rows import item_bytes
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.settings import RuntimeSettings

if TYPE_CHECKING:
    from qwonnx.runtime.model.session import PlacedNode

_EXCERPT = 40  # characters


def inspect(
    artifact: ArtifactArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Also compare the hashes of the weights.")] = False,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="Load the graphs as a server would, and show what runs each node.")
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Show an artifact's model, weights, graphs, states, files and baked prefixes.

    The command always checks the presence and sizes of all files, and the contents of all files but the weights. It
    shows why a baked prefix cannot be used; with --verify this is an error.

    Examples:

        qwonnx inspect ./qwen-int4

        qwonnx inspect ./qwen-int4 --json --verify

        qwonnx inspect ./qwen-cuda --nodes --device cuda:1
    """
    opened = open_artifact(artifact, verify=verify)
    if nodes:
        placed = _placed_nodes(opened, runtime_settings(device=device))
        if as_json:
            listed = {name: [msgspec.structs.asdict(node) for node in graph] for name, graph in placed.items()}
            typer.echo(json.dumps(listed, indent=1))
        else:
            Console().print(_nodes_table(placed))
        return
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(opened.manifest), indent=1, ensure_ascii=False))
        return
    console = Console()
    for table in inspect_tables(opened):
        console.print(table)
    compiled = list(compiled_folders(opened))
    if compiled:
        console.print(_compiled_table(compiled))
    prefixes = list(prefix_files(opened, opened.manifest.model.max_position_embeddings))
    if prefixes:
        console.print(_prefixes_table(opened, prefixes))
    if verify:
        for prefix in prefixes:
            if prefix.capsule is None:
                raise CommandError(f"the baked prefix {prefix.path} is not used: {prefix.refusal}")
        console.print("All files are as they were exported.")


def inspect_tables(artifact: Artifact) -> list[Table]:
    manifest = artifact.manifest
    return [
        facts_table("Artifact", _artifact_facts(artifact)),
        facts_table("Model", _model_facts(manifest)),
        weights_table(manifest.quantization),
        _graphs_table(manifest),
        _states_table(manifest),
        _files_table(manifest),
    ]


def _artifact_facts(artifact: Artifact) -> dict[str, object]:
    manifest, source = artifact.manifest, artifact.manifest.source
    quantization = manifest.quantization
    return {
        "id": artifact.id[:16],
        "target": manifest.target,
        "weights": f"{quantization.weights}, blocks of {quantization.weight_block_size}"
        if quantization.weight_block_size
        else quantization.weights,
        "activations": quantization.activations,
        "keys and values": f"{quantization.kv}, {bytes_text(_bytes_per_token(manifest))} per token",
        **({} if manifest.stage.is_whole else {"stage": f"{manifest.stage.number} of {manifest.stage.count}"}),
        "checkpoint": source.checkpoint + (f" at {source.revision}" if source.revision else ""),
        "checkpoint's dtype": source.dtype,
        **{f"adapter {number}": _adapter(facts) for number, facts in enumerate(manifest.adapters, 1)},
        **({"takes adapters of": _targets(manifest)} if manifest.adapter_targets else {}),
        "exported by": f"qwonnx {manifest.qwonnx_version}",
        "needs": f"ONNX Runtime {manifest.minimum_onnxruntime} or later",
        "native kernels": ", ".join(sorted(_native_operators(manifest))) or "none",
        "schema": manifest.schema_version,
    }


def _adapter(facts: AdapterFacts) -> str:
    kind = {"lora": "LoRA", "dora": "DoRA"}.get(facts.kind, facts.kind)
    return f"{facts.name}, {kind}, rank {facts.rank}, scaling {facts.scaling}, sha256 {facts.sha256[:16]}"


def _targets(manifest: Manifest) -> str:
    """The projections that adapters can change while the model runs, and what one takes in memory."""
    names = dict.fromkeys(target.module.rpartition(".")[2] for target in manifest.adapter_targets)
    width = slot_width(manifest.adapter_targets)
    return f"{', '.join(names)}; {bytes_text(4 * width)} for each rank"


def _native_operators(manifest: Manifest) -> set[str]:
    """The operators that native kernels can run; without these kernels ONNX Runtime's run."""
    return {name for graph in manifest.graphs.values() for name in graph.native_operators}


def _bytes_per_token(manifest: Manifest) -> int:
    """Bytes that one more token adds to the cache: the states that grow with max_model_len."""
    states = (state for graph in manifest.graphs.values() for state in graph.states)
    growing = (state for state in states if "max_model_len" in state.shape)
    return sum(
        math.prod(size for size in state.shape if isinstance(size, int)) * item_bytes(state) for state in growing
    )


def _model_facts(manifest: Manifest) -> dict[str, object]:
    facts = dataclasses.asdict(manifest.model)
    facts["layer_types"] = ", ".join(f"{n} {kind}" for kind, n in Counter(manifest.model.layer_types).items())
    facts["num_parameters"] = f"{manifest.model.num_parameters:,}"
    return facts


def _graphs_table(manifest: Manifest) -> Table:
    table = FittingTable(title="Graphs (without states)", title_justify="left")
    for column in ("graph", "file", "tensor", "dtype", "shape"):
        table.add_column(column)
    for name, graph in manifest.graphs.items():
        for direction, tensors in (("in", graph.inputs), ("out", graph.outputs)):
            for tensor in tensors:
                add_row(table, name, graph.file, f"{direction} {tensor.name}", tensor.dtype, _shape(tensor.shape))
    return table


def _states_table(manifest: Manifest) -> Table:
    table = FittingTable(title="States of a sequence", title_justify="left")
    for column in ("graph", "kind", "layers", "dtype", "shape"):
        table.add_column(column)
    for name, graph in manifest.graphs.items():
        counts = Counter((state.kind, state.dtype, state.shape) for state in graph.states)
        for (kind, dtype, shape), count in counts.items():
            add_row(table, name, kind, count, dtype, _shape(shape))
    return table


def _placed_nodes(artifact: Artifact, settings: RuntimeSettings) -> dict[str, tuple[PlacedNode, ...]]:
    from qwonnx.runtime.model.artifact_placement import place_artifact
    from qwonnx.runtime.model.files import settle_max_model_len  # ONNX Runtime, which the other tables do not need
    from qwonnx.runtime.model.placement import check_device
    from qwonnx.runtime.model.session import Session, check_version

    manifest = artifact.manifest
    check_version(manifest)
    placement = place_artifact(artifact, settings, settle_max_model_len(manifest.model, settings))
    check_device(placement.device, manifest)
    placed = {}
    for name, graph in manifest.graphs.items():
        file = artifact.file(graph.file)
        file = placement.graph if name == DECODER and placement.graph else file
        session = Session(file, settings, graph.native_operators, placement, records_nodes=True)
        placed[name] = session.placed_nodes()
    return placed


def _nodes_table(placed: dict[str, tuple[PlacedNode, ...]]) -> Table:
    """One row for each graph, provider and operator, with the number of its nodes."""
    total = sum(len(nodes) for nodes in placed.values())
    table = FittingTable(title="Nodes, as ONNX Runtime runs them here", title_justify="left", show_footer=True)
    table.add_column("graph", "total")
    table.add_column("provider")
    table.add_column("operator", overflow="fold")
    table.add_column("nodes", str(total), justify="right")
    for name, nodes in placed.items():
        counts = Counter((node.provider, ".".join(filter(None, (node.domain, node.op_type)))) for node in nodes)
        for (provider, operator), count in counts.items():
            add_row(table, name, provider, operator, count)
    return table


def _files_table(manifest: Manifest) -> Table:
    table = FittingTable(title="Files", title_justify="left", show_footer=True)
    table.add_column("file", "total")
    table.add_column("size", bytes_text(manifest.num_bytes), justify="right")
    table.add_column("sha256")
    for entry in manifest.files:
        add_row(table, entry.path, bytes_text(entry.size), entry.sha256[:16])
    return table


def _compiled_table(compiled: list[CompiledFolder]) -> Table:
    table = FittingTable(title="Compiled models", title_justify="left")
    for column in ("folder", "provider", "for", "steps", "size"):
        table.add_column(column)
    for folder in compiled:
        if folder.model is None:
            add_row(table, folder.path.name, "", f"not used: {folder.refusal}", "", "")
            continue
        identity, limits = folder.model.identity, folder.model.limits
        machine = f"{identity.gpu} ({identity.compute_capability}), TensorRT {identity.tensorrt}"
        steps = f"{limits.max_num_seqs} sequences of {limits.max_model_len}, chunks of {limits.max_num_batched_tokens}"
        size = bytes_text(sum(entry.size for entry in folder.model.files))
        add_row(table, folder.path.name, folder.model.provider, machine, steps, size)
    return table


def _prefixes_table(artifact: Artifact, prefixes: list[PrefixFile]) -> Table:
    from qwonnx.runtime.text.artifact_tokenizer import open_tokenizer  # large imports, which most do not need

    tokenizer = open_tokenizer(artifact)
    table = FittingTable(title=f"Baked prefixes (in {FOLDER})", title_justify="left")
    table.add_column("file")
    table.add_column("tokens", justify="right")
    table.add_column("size", justify="right")
    table.add_column("text, or reason it is not used")
    for prefix in prefixes:
        name = prefix.path.name[:16]
        if prefix.capsule is None:
            add_row(table, name, "-", bytes_text(prefix.num_bytes), prefix.refusal)
        else:
            token_ids = prefix.capsule.token_ids
            add_row(table, name, len(token_ids), bytes_text(prefix.num_bytes), _excerpt(tokenizer.decode(token_ids)))
    return table


def _excerpt(text: str) -> str:
    """The beginning and the end of a text, in one printable line: prompts with tools begin alike."""
    line = "".join(character if character.isprintable() else " " for character in text)
    words = " ".join(line.split())
    return words if len(words) <= 2 * _EXCERPT else f"{words[:_EXCERPT].strip()} ... {words[-_EXCERPT:].strip()}"


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"
