"""`qwonnx stage`: one stage of a model in stages, for a server elsewhere. It starts without typer."""

from __future__ import annotations

import dataclasses
import logging
import signal
from collections.abc import Sequence
from types import FrameType

from qwonnx.handlers.cli.word_parser import WordParser
from qwonnx.handlers.models.artifact_path import artifact_path
from qwonnx.runtime.machine import prepare_process, settle_process
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.quantities import parse_bytes
from qwonnx.runtime.settings import Residency, RuntimeSettings

HELP = "Run one stage of a model in stages, for a server elsewhere."
_DESCRIPTION = f"""{HELP}

qwonnx export --stages N writes the artifacts OUT/stage-1 to OUT/stage-N. This command runs stage 2, 3, ...; qwonnx
serve OUT/stage-1 --stages ADDRESS,... connects with them. Beyond this machine, all need one key in QWONNX_STAGE_KEY.
The key does not hide what is sent: use a network of your own. Every option also has a variable.

Examples:
  qwonnx stage ./qwen/stage-2 --listen 127.0.0.1:7002
  QWONNX_STAGE_KEY=... qwonnx stage ./qwen/stage-2 --listen 10.0.0.2:7000"""
_DEFAULT_ADDRESS = "127.0.0.1:7000"


def stage(words: Sequence[str]) -> None:
    """Run the command with the words after `qwonnx stage`; returns after a signal.

    Raises:
        CommandError, SettingsError: the options cannot be used.
        ArtifactError, SessionError, ...: the stage cannot be opened.
    """
    prepare_process()
    options = parser().parse_args(words)
    given = {name: getattr(options, name) for name in ("num_threads", "kernels", "weights_residency")}
    if options.memory is not None:
        given["memory_bytes"] = parse_bytes(options.memory, "--memory", at_least=0)
    changed = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(RuntimeSettings.from_environment(), **changed)

    from qwonnx.runtime.artifact.folder import open_artifact
    from qwonnx.runtime.model.stages.address import StageAddress
    from qwonnx.runtime.model.stages.stage_server import StageServer

    address = StageAddress.parse(options.listen)
    address.check_key(settings.stage_key)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    artifact = open_artifact(options.artifact, verify=options.verify)
    with address.listen() as listener:  # an engine that connects early waits in it
        print(f"Loading {options.artifact} ...", flush=True)
        server = StageServer(artifact, settings)
        settle_process()

        def end(number: int, frame: FrameType | None) -> None:
            server.close()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        where = address
        if address.path is None:
            where = dataclasses.replace(address, port=listener.getsockname()[1])
        print(f"Running {server.name} of {artifact.manifest.source.checkpoint} at {where} (Ctrl-C ends it)", flush=True)
        server.serve(listener)
    print("Stopped. Goodbye.", flush=True)


def parser() -> WordParser:
    parser = WordParser("qwonnx stage", _DESCRIPTION)
    add = parser.add_argument
    add("artifact", type=artifact_path, metavar="ARTIFACT", help="the stage's folder, such as OUT/stage-2")
    add("--listen", default=_DEFAULT_ADDRESS, metavar="ADDRESS", help="HOST:PORT or unix:PATH")
    add("--threads", dest="num_threads", type=int, metavar="N", help="threads of ONNX Runtime; by default all cores")
    add("--memory", metavar="BYTES", help="memory for the whole process, such as 8GB; see qwonnx serve")
    add("--kernels", choices=[each.value for each in Kernels], help="kernels of the graph's own operators")
    add("--weights-residency", choices=[each.value for each in Residency], help="see qwonnx serve")
    add("--verify", action="store_true", help="also check the hashes of the weights first")
    return parser
