"""A clean Debian in a folder: minimal packages, this machine's package index, and nothing else of this machine.

debootstrap makes it. Each command runs below it by chroot, in a mount namespace that ends with the command, so no mount
is left behind. The network is this machine's, so a server of the tests can be reached at 127.0.0.1.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Without a C++ compiler: the installation has to bring its own.
PACKAGES = ("python3", "python3-venv", "make", "git", "curl", "ca-certificates")
VARIABLE = "QWONNX_CLEAN_MACHINE"
_SUITE, _MIRROR = "bookworm", "http://deb.debian.org/debian"
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_PATH = re.compile(r"(file://)?(/[\w./+-]+)")
# $1 is the user; the rest is the command. READ_ONLY has paths with spaces between them.
_ENTER = """
mount -t proc proc "$ROOT/proc"
mount -t sysfs -o ro sysfs "$ROOT/sys"
mount --rbind /dev "$ROOT/dev"
for path in $READ_ONLY; do
    mount --bind "$path" "$ROOT$path"
    mount -o remount,bind,ro "$ROOT$path"
done
user=$1
shift
exec chroot --userspec="$user:$user" "$ROOT" /usr/bin/env -i "$@"
"""


class NoMachine(Exception):
    """This machine cannot make a clean one; the message says why."""


@dataclass(frozen=True, slots=True)
class CleanMachine:
    """A Debian in a folder.

    root: the folder that is / to its programs.
    read_only: files and folders of this machine that its pip needs; they are at the same paths there.
    environment: variables for pip and for TLS.
    """

    root: Path
    read_only: tuple[Path, ...]
    environment: dict[str, str]

    def command(self, user: str, words: list[str], variables: dict[str, str]) -> list[str]:
        """A command line of this machine whose process becomes the given program of the clean one."""
        assigned = [f"{name}={value}" for name, value in {**self.environment, **variables}.items()]
        places = ["env", f"ROOT={self.root}", f"READ_ONLY={' '.join(map(str, self.read_only))}"]
        return [*places, "unshare", "--mount", "sh", "-ec", _ENTER, "enter", user, *assigned, *words]

    def add_user(self, name: str) -> Path:
        """A new user's home, as a path of this machine; what earlier ones left is removed."""
        home = self.root / "home" / name
        for left in (home, *(self.root / "tmp").iterdir()):
            shutil.rmtree(left, ignore_errors=True)
        self._as_root("userdel", name, check=False)
        self._as_root("useradd", "--create-home", "--shell", "/bin/bash", name)
        return home

    def give(self, user: str, path: Path) -> None:
        """Make a user the owner of a path and of all below it."""
        self._as_root("chown", "--recursive", f"{user}:{user}", f"/{path.relative_to(self.root)}")

    def _as_root(self, *words: str, check: bool = True) -> None:
        subprocess.run(["chroot", str(self.root), *words], check=check, capture_output=True)


def clean_machine(folder: Path) -> CleanMachine:
    """A machine in `folder`, where one that was made before is used again.

    Raises NoMachine if this is not Linux, or without root's rights, debootstrap, mount namespaces or a mirror.
    """
    _check()
    root = folder / "root"
    if not (root / "etc" / "qwonnx-clean").exists():
        shutil.rmtree(root, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", _SUITE, str(root), _MIRROR]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise NoMachine(f"debootstrap: {made.stdout.strip().splitlines()[-1:]}")
        (root / "etc" / "qwonnx-clean").touch()
    options = _pip_options()
    names = (*_CERTIFICATES, *_PROXIES)
    environment = {**options, **{name: os.environ[name] for name in names if name in os.environ}}
    read_only = sorted({path for value in environment.values() for path in _paths(value)})
    for path in (Path("/etc/hosts"), Path("/etc/resolv.conf")):
        shutil.copyfile(path, root / path.relative_to("/"))
    for path in read_only:
        inside = root / path.relative_to("/")
        if path.is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        else:
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
    return CleanMachine(root, tuple(read_only), environment)


def _check() -> None:
    if sys.platform != "linux":
        raise NoMachine("a clean machine is made by chroot, on Linux")
    if os.geteuid() != 0:
        raise NoMachine("a clean machine is made by chroot, which needs root's rights")
    missing = [name for name in ("debootstrap", "unshare", "chroot", "git") if shutil.which(name) is None]
    if missing:
        raise NoMachine(f"not installed: {', '.join(missing)} (apt install debootstrap)")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        raise NoMachine("mount namespaces are not allowed here")


def _pip_options() -> dict[str, str]:
    """What this machine's pip reads from its files and variables, as variables: where the index is."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    options = {}
    for line in sorted(listed.splitlines(), reverse=True):  # variables (":env:.") come last, and win
        found = re.fullmatch(r"(?:global|install|:env:)\.([\w-]+)=('.*')", line)
        if found:
            name = f"PIP_{found[1].upper().replace('-', '_')}"
            options[name] = " ".join(str(ast.literal_eval(found[2])).split())
    return options


def _paths(value: str) -> list[Path]:
    """Paths of this machine that a value names; an index in a folder may lead to files beside it."""
    paths = (Path(path).parent if scheme else Path(path) for scheme, path in _PATH.findall(value))
    return [path for path in paths if path.exists() and path != Path("/")]
