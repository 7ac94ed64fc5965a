"""`qwonnx completion`: the script with which a shell completes commands, options, values and names of models.

The script asks `qwonnx __complete WORD...` at each Tab; the last word is the unfinished one. The answer has a line
for each candidate: the word, a tab, a description. The lines ":file" and ":folder" ask the shell for its own paths.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from qwonnx.handlers.cli.arguments import ARTIFACT
from qwonnx.handlers.cli.command_line import nested_spec, spec_of, summaries
from qwonnx.handlers.cli.command_spec import CommandSpec, OptionSpec
from qwonnx.handlers.cli.commands import names
from qwonnx.handlers.models.errors import ModelStoreError
from qwonnx.handlers.models.stored_models import StoredModels

FILE, FOLDER = ":file", ":folder"
_ROOT_OPTIONS = (("--help", "Show this help."), ("--version", "Print the version and exit."))
_DEVICES = ("cpu", "cuda", "tensorrt", "rtx")
_FOLDERS = {"FOLDER", "OUT"}
_FILES = {"FILE", "FILE...", "IN OUT"}
_CHECKPOINTS = {"CHECKPOINT", "SOURCE", "MODEL", "ADAPTER"}

Candidate = tuple[str, str]


class Shell(StrEnum):
    """A shell that has a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.", metavar="SHELL")]) -> None:
    """Print the script that completes commands, options, values and names of models in a shell.

    It asks this program at each Tab, so it need not be made anew after an update.

    Examples:

        echo 'eval "$(qwonnx completion bash)"' >> ~/.bashrc

        echo 'eval "$(qwonnx completion zsh)"' >> ~/.zshrc

        qwonnx completion fish > ~/.config/fish/completions/qwonnx.fish
    """
    typer.echo(_SCRIPTS[shell], nl=False)


def print_candidates(words: Sequence[str]) -> None:
    """The answer to a script."""
    for word, about in candidates(words):
        sys.stdout.write(f"{word}\t{about}\n" if about else f"{word}\n")


def candidates(words: Sequence[str]) -> list[Candidate]:
    """What the last word may become, with descriptions.

    Args:
        words: those after `qwonnx`; the last one is unfinished, and may be empty.
    """
    *before, current = words or [""]
    found = _candidates(before, current)
    return [(word, about) for word, about in found if word in (FILE, FOLDER) or word.startswith(current)]


def _candidates(before: list[str], current: str) -> Iterator[Candidate]:
    if not before:
        yield from (_ROOT_OPTIONS if current.startswith("-") else summaries())
        return
    if before[0] not in names():
        return
    spec, rest = spec_of(before[0]), before[1:]
    if spec.subcommands:
        below = dict(spec.subcommands)
        if not rest:
            yield from spec.subcommands
            return
        if rest[0] not in below:
            return
        spec, rest = nested_spec(before[0], rest[0]), rest[1:]
    by_name = {name: option for option in spec.options if not option.is_argument for name in option.names}
    if "=" in current and (option := by_name.get(current.partition("=")[0])) is not None:
        start = current.partition("=")[0] + "="
        yield from ((word if word in (FILE, FOLDER) else start + word, about) for word, about in _values(option))
    elif rest and (option := by_name.get(rest[-1])) is not None and option.value is not None:
        yield from _values(option)
    elif current.startswith("-"):
        yield from _options(spec, rest)
    elif (argument := _argument(spec, rest, by_name)) is not None:
        yield from _values(argument)


def _options(spec: CommandSpec, given: Sequence[str]) -> Iterator[Candidate]:
    for option in spec.options:
        known = (*option.names, *option.negatives)
        if not option.is_argument and (option.repeats or not {*known} & {*given}):
            yield from ((name, option.help) for name in known if name.startswith("--"))


def _argument(spec: CommandSpec, given: Sequence[str], by_name: dict[str, OptionSpec]) -> OptionSpec | None:
    """The argument whose turn it is."""
    count, words = 0, iter(given)
    for word in words:
        option = by_name.get(word)
        if option is not None and option.value is not None:
            next(words, None)
        elif not word.startswith("-"):
            count += 1
    arguments = spec.arguments
    if count < len(arguments):
        return arguments[count]
    return arguments[-1] if arguments and arguments[-1].repeats else None


def _values(option: OptionSpec) -> Iterator[Candidate]:
    """What an option or an argument may be."""
    kind = option.names[0] if option.is_argument else option.value or ""
    if option.choices:
        yield from ((choice, "") for choice in option.choices)
    elif option.field == "recipe":
        from qwonnx.export.quantization.recipe import SHIPPED, Preset

        yield from ((name, "") for name in (*Preset, *SHIPPED))
        yield FILE, ""
    elif kind == "[COMMAND]":
        yield from summaries()
    elif kind == "DEVICE":
        yield from ((name, "") for name in _DEVICES)
    elif kind in (ARTIFACT, "MODEL...") or (option.is_argument and kind == "MODEL"):
        yield from _models()
        if kind != "MODEL...":
            yield FOLDER, ""
    elif kind in _FOLDERS:
        yield FOLDER, ""
    elif kind in _FILES or kind in _CHECKPOINTS:
        yield FILE, ""


def _models() -> Iterator[Candidate]:
    """Names of pulled models: with their recipes where there are several."""
    try:
        models = StoredModels().models()
    except ModelStoreError:
        return
    plain = [str(model.name).rpartition(":")[0] for model in models]
    for model, name in zip(models, plain, strict=True):
        yield (str(model.name) if plain.count(name) > 1 else name), model.record.source


_BASH = r"""# qwonnx: completion for bash
_qwonnx() {
    local line=${COMP_LINE:0:COMP_POINT} current prefix word about
    local -a words
    read -a words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]}-1]}
    COMPREPLY=()
    while IFS=$'\t' read -r word about; do
        case $word in
            :file|:folder)
                compopt -o filenames 2> /dev/null
                while IFS= read -r word; do COMPREPLY+=("$word"); done < <(
                    if [[ $word == :file ]]; then compgen -f -- "$current"; else compgen -d -- "$current"; fi
                ) ;;
            *) COMPREPLY+=("$word") ;;
        esac
    done < <("${words[0]}" __complete "${words[@]:1}" 2> /dev/null)
    # bash itself breaks words at these characters, and replaces only what comes after.
    if [[ $current == *[:=]* && $COMP_WORDBREAKS == *[:=]* ]]; then
        prefix=${current%"${current##*[:=]}"}
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
}
complete -F _qwonnx qwonnx
"""
_ZSH = r"""#compdef qwonnx
# qwonnx: completion for zsh
_qwonnx() {
    local line word about
    local -a described
    for line in "${(@f)$("${words[1]}" __complete "${(@Q)words[2,CURRENT]}" 2> /dev/null)}"; do
        case $line in
            :file) _files ;;
            :folder) _files -/ ;;
            ?*)
                word=${line%%$'\t'*} about=
                [[ $line == *$'\t'* ]] && about=${line#*$'\t'}
                described+=("${word//:/\\:}:$about") ;;
        esac
    done
    _describe -V 'qwonnx' described
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u }
compdef _qwonnx qwonnx
"""
_FISH = r"""# qwonnx: completion for fish
function __qwonnx_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for line in (command $words[1] __complete $words[2..-1] "$current" 2> /dev/null)
        switch $line
            case :file
                __fish_complete_path "$current"
            case :folder
                __fish_complete_directories "$current" ''
            case '*'
                echo $line
        end
    end
end
complete -c qwonnx -f -a '(__qwonnx_complete)'
"""
_SCRIPTS = {Shell.BASH: _BASH, Shell.ZSH: _ZSH, Shell.FISH: _FISH}
