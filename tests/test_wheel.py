"""The built wheel: it has every sub-package and nothing else, and runs without the repository."""

from __future__ import annotations

import marshal
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import import_module
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path

import pytest
from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

import qwonnx
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.native.build import LIBRARY, find_compiler
from tests.runtime import counting_model

ROOT = Path(__file__).resolve().parent.parent


# optimum-cli searches this folder of optimum for commands; the module in it is ours.
REGISTER_FOLDER, REGISTER = "handlers/cli/optimum_register/", "optimum/commands/register/"
# Installed as qwonnx itself.
PACKAGE_FOLDER = "handlers/library/package/"

# optimum-cli in an interpreter that knows the given folder of installed packages, and the others of this environment
# but not this environment's own qwonnx (it does not run its *.pth files).
OPTIMUM_CLI = f"""
import site, sys
site.addsitedir(sys.argv.pop(1))
sys.path.append({sysconfig.get_path("purelib")!r})
from optimum.commands.optimum_cli import main
main()
"""


# Prints where qwonnx is from, and what it has.
_LOOK = """
import sys
import qwonnx
assert not [name for name in sys.modules if name.startswith("qwonnx.")], "names are imported on first use"
assert "importlib.metadata" not in sys.modules and "numpy" not in sys.modules
assert {"LLM", "AsyncLLM", "Engine", "SamplingParams", "runtime", "__version__"} <= set(dir(qwonnx))
print(qwonnx.__file__)
print(qwonnx.__version__)
from qwonnx import LLM, AsyncLLM
import qwonnx.runtime, qwonnx.handlers.chat
from importlib.util import find_spec
assert find_spec("qwonnx.export")
print(LLM.__module__)
"""

# Answers one chat over the application and one over the Lambda handler, and prints whether export was imported.
_SERVE_WITHOUT_EXPORT = """
import json, os, sys
sys.path.append(sys.argv[1])  # the other packages of this environment, without its own qwonnx (-S)
from starlette.testclient import TestClient
from qwonnx.handlers.app import from_environment
body = {"model": "counting-model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
with TestClient(from_environment()) as client:
    while client.get("/health/ready").status_code != 200:
        pass
    print(client.get("/health/ready").status_code)
    model = client.get("/v1/models").json()["data"][0]["id"]
    answer = client.post("/v1/chat/completions", json={**body, "model": model})
    print(answer.status_code, answer.json()["choices"][0]["finish_reason"].replace("length", "stop"))
from qwonnx.handlers.functions.aws_lambda import handler
event = {
    "version": "2.0", "rawPath": "/v1/models", "rawQueryString": "", "headers": {}, "isBase64Encoded": False,
    "requestContext": {
        "http": {"method": "GET", "path": "/v1/models", "sourceIp": "127.0.0.1", "protocol": "HTTP/1.1"},
    },
}
print(handler(event, None)["statusCode"])
import contextlib, io
from qwonnx.handlers.cli.main import main
def status(*words):
    sys.argv, said = ["qwonnx", *words], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit as ended:
            return ended.code, "only serves" in said.getvalue().replace("\\n", " ")
for words in (["--help"], ["serve", "--help"], ["inspect", os.environ["QWONNX_ARTIFACT"]]):
    print(*status(*words))
print(status("export", "here", "there")[0])
import importlib.util
print(importlib.util.find_spec("qwonnx.export") is not None or any("qwonnx.export" in name for name in sys.modules))
"""


@pytest.fixture(scope="module")
def counting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting_model.make(tmp_path_factory.mktemp("counting") / "artifact").folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, so that setuptools' build folders do not end up in the repository, and old ones not in the wheel."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("export", "runtime", "handlers"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.dylib"))
    (source / "infra").mkdir()
    for name in ("native_package.py", "source_archive.py"):
        shutil.copy(ROOT / "infra" / name, source / "infra")
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"), kernels=True)


def build_wheel(source: Path, out: Path, *, kernels: bool) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)],
        env={**os.environ, "QWONNX_NATIVE_BUILD": str(int(kernels))},
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def editable(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of `pip install -e`."""
    out = tmp_path_factory.mktemp("editable")
    program = f"from setuptools import build_meta; build_meta.build_editable({str(out)!r})"
    environment = {**os.environ, "QWONNX_NATIVE_BUILD": "0"}
    subprocess.run([sys.executable, "-c", program], cwd=source, env=environment, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    listed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packed = {name for name in listed if not name.endswith(".pyc")}
    sources = {
        f"qwonnx/{path.relative_to(ROOT).as_posix()}".replace(f"qwonnx/{REGISTER_FOLDER}", REGISTER).replace(
            f"qwonnx/{PACKAGE_FOLDER}", "qwonnx/"
        )
        for folder in ("export", "runtime", "handlers")
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py"
        or path.name in ("py.typed", "cuda_kernels.txt", "rtx_importers.txt", "page.html")
        or path.parent.name in ("recipes", "sources")
    }
    kernels = {f"qwonnx/runtime/native/{LIBRARY}"} if find_compiler() else set()
    assert packed == sources | kernels
    modules = {cache_from_source(name) for name in sources if name.endswith(".py")}
    assert listed - packed == modules
    assert {name for name in packed if not name.startswith("qwonnx/")} == {f"{REGISTER}register_qwonnx.py"}


def test_bytecode_is_used_without_a_look_at_its_source(wheel: Path) -> None:
    """By its flags (PEP 552): made from a hash that nobody checks. The path in it is the module's in the wheel."""
    bytecode = zipfile.ZipFile(wheel).read(cache_from_source("qwonnx/runtime/settings.py"))
    assert bytecode[:4] == MAGIC_NUMBER
    assert int.from_bytes(bytecode[4:8], "little") == 0b01
    assert marshal.loads(bytecode[16:]).co_filename == "qwonnx/runtime/settings.py"


def test_the_version_is_the_projects(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version, _, tags = parse_wheel_filename(wheel.name)
    assert (name, str(version)) == ("qwonnx", project["version"])
    assert tags & set(sys_tags()), "this machine takes it"
    (tag,) = tags
    assert (tag.interpreter, tag.abi) == ("py3", "none")
    assert (tag.platform == "any") == (find_compiler() is None)
    assert not tag.platform.startswith("linux_"), "package indexes refuse it"


@pytest.mark.parametrize(
    ("content", "platform"),
    [
        (b"..GLIBC_2.2.5..GLIBC_2.14..", "manylinux_2_17_x86_64"),
        (b"..GLIBC_2.2.5..GLIBC_2.34..GLIBC_2.4", "manylinux_2_34_x86_64"),
        (b"..GLIBC_2.14..libstdc++.so.6..", "linux_x86_64"),
        (b"..of musl..", "linux_x86_64"),
    ],
)
def test_a_wheel_is_for_all_systems_that_have_what_its_library_needs(
    content: bytes, platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_package = import_module("infra.native_package")
    monkeypatch.setattr(native_package.sysconfig, "get_platform", lambda: "linux-x86_64")
    (tmp_path / "library").write_bytes(content)
    assert native_package.platform_of(tmp_path / "library") == platform


def test_a_wheel_without_kernels_is_for_every_platform(source: Path, wheel: Path, tmp_path: Path) -> None:
    """`wheel` was built first, in the same folders: nothing of its library may remain."""
    plain = build_wheel(source, tmp_path, kernels=False)
    assert plain.name == f"{wheel.name.rsplit('-', 1)[0]}-any.whl"
    names = {name for name in zipfile.ZipFile(plain).namelist() if ".dist-info/" not in name}
    assert names == {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} - {
        f"qwonnx/runtime/native/{LIBRARY}"
    }


def test_the_wheel_runs_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    program = (
        "import qwonnx.runtime, qwonnx.handlers.app, qwonnx.export, sys;"
        "from qwonnx.handlers.cli.main import main;"
        "print(qwonnx.runtime.__file__); sys.argv[1:] = ['--version']; main()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    location, version = run.stdout.strip().splitlines()
    assert Path(location).is_relative_to(site), "the wheel's modules must be tested, not the repository's"
    assert version == f"qwonnx {wheel.name.split('-')[1]}"


def test_a_machine_that_only_serves_needs_no_export_package(wheel: Path, tmp_path: Path, counting_folder: Path) -> None:
    """A wheel without export/: the engine, the server and the functions answer a request."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    shutil.rmtree(site / "qwonnx" / "export")
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "QWONNX_ARTIFACT": str(counting_folder),
    }
    run = subprocess.run(
        [sys.executable, "-S", "-c", _SERVE_WITHOUT_EXPORT, sysconfig.get_path("purelib")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["200", "200", "stop", "200", "0", "True", "0", "False", "0", "False", "2", "False"], (
        run.stdout
    )


def optimum_cli(package: Path, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run optimum-cli in a folder, with a wheel (or an editable one) installed."""
    zipfile.ZipFile(package).extractall(folder / "site")
    command = [sys.executable, "-S", "-c", OPTIMUM_CLI, str(folder / "site"), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_optimum_finds_the_command(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    package = request.getfixturevalue(kind)
    assert "qwonnx" in optimum_cli(package, tmp_path, "export", "--help").stdout
    refused = optimum_cli(package, tmp_path, "export", "qwonnx", "-m", "nothing", "out")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert refused.stderr.startswith("qwonnx: error: nothing does not exist")


def test_optimum_exports_with_the_installed_command(wheel: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = optimum_cli(wheel, tmp_path, "export", "qwonnx", "-m", tiny_checkpoint, "--weights", "int8", "artifact")
    assert done.returncode == 0, done.stderr
    assert "bits/weight" in done.stdout
    assert open_artifact(tmp_path / "artifact", verify=True).manifest.quantization.weights == "int8"


def test_every_name_is_there_and_no_other() -> None:
    assert all(getattr(qwonnx, name) is not None for name in qwonnx.__all__)
    assert set(qwonnx.__all__) <= set(dir(qwonnx))
    with pytest.raises(AttributeError, match="module 'qwonnx' has no attribute 'LLm'"):
        _ = qwonnx.LLm  # type: ignore[attr-defined]


@pytest.fixture
def of_sdist(source: Path, tmp_path: Path) -> Path:
    """A wheel that was built from the sdist, which has all that it needs."""
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 has none
        packed.extractall(tmp_path)
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    return build_wheel(unpacked, tmp_path / "out", kernels=False)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_it_is_found_beside_a_clone_of_its_name(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    """A user clones into the home folder, and runs Python there."""
    site, home = tmp_path / "site", tmp_path / "home"
    zipfile.ZipFile(request.getfixturevalue(kind)).extractall(site)
    (home / "qwonnx" / "runtime").mkdir(parents=True)
    program = f"import site; site.addsitedir({str(site)!r}); import qwonnx.runtime; print(qwonnx.__version__)"
    run = subprocess.run([sys.executable, "-S", "-c", program], cwd=home, capture_output=True, text=True)
    assert (run.stdout.strip(), run.returncode) == (qwonnx.__version__, 0), run.stderr


def test_without_a_compiler_a_wheel_takes_the_library_of_the_same_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_package = import_module("infra.native_package")  # setuptools has no types
    build = native_package._build_module()
    monkeypatch.delenv("QWONNX_NATIVE_BUILD", raising=False)
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    monkeypatch.setattr(native_package, "_build_module", lambda: build)
    monkeypatch.setattr(native_package, "ROOT", tmp_path)
    library, out = tmp_path / native_package.PACKAGE / LIBRARY, tmp_path / "out"
    library.parent.mkdir(parents=True)
    out.mkdir()
    assert "there is no C++ compiler" in native_package._compile(out)
    library.write_bytes(b"of other sources")
    assert "there is no C++ compiler" in native_package._compile(out)
    library.write_bytes(b"\0" + build.sources_digest().encode() + b"\0")
    assert native_package._compile(out) == ""
    assert (out / LIBRARY).read_bytes() == library.read_bytes()
    assert native_package._compile(library.parent) == ""


@pytest.mark.parametrize("kind", ["wheel", "editable", pytest.param("of_sdist", marks=pytest.mark.soak)])
def test_it_can_be_imported_as_installed(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(request.getfixturevalue(kind)).extractall(site)
    # Without this environment's own qwonnx (-S), but with its other packages.
    program = f"import site, sys; site.addsitedir({str(site)!r}); sys.path += {sys.path!r}\n{_LOOK}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    file, version, module = run.stdout.split()
    inside = site if kind != "editable" else Path(str(request.getfixturevalue("source")))
    assert Path(file).is_relative_to(inside)
    assert (version, module) == (qwonnx.__version__, "qwonnx.handlers.library.llm")
