"""Scripts by which shells complete verbs, options and their words; paths are completed as everywhere."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from beitkit.command.options import Option

SHELLS = ("bash", "zsh", "fish")
EXTRA = ("--help", "--help-all")
"""Options of every verb."""
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def script(
    shell: str, verbs: Mapping[str, Sequence[Option]], summaries: Mapping[str, str], beside: Mapping[str, Sequence[str]]
) -> str:
    """What a shell reads to complete commands: `source <(beitkit --completion bash)`.

    Args:
        shell: bash, zsh or fish.
        verbs: each verb's options.
        summaries: what each verb does, which fish shows.
        beside: each verb's options of the command line alone (`command.beside`).
    """
    if shell == "fish":
        return _fish(verbs, summaries, beside)
    return (ZSH if shell == "zsh" else "") + _bash(verbs, beside)


def _bash(verbs: Mapping[str, Sequence[Option]], beside: Mapping[str, Sequence[str]]) -> str:
    options, words = [], []
    for verb, found in verbs.items():
        names = " ".join([*(option.name for option in found if not option.is_positional), *EXTRA, *beside[verb]])
        options.append(f"    {verb}) options={shlex.quote(names)} ;;")
        for option in found:
            if option.choices and not option.is_positional:
                words.append(f"    {verb},{option.name}) words={shlex.quote(' '.join(option.choices))} ;;")
    lines = [
        "_beitkit() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" verb="${COMP_WORDS[1]}"',
        '  local options="" words=""',
        '  if [ "$COMP_CWORD" -eq 1 ]; then',
        f'    COMPREPLY=($(compgen -W {shlex.quote(" ".join([*verbs, "--help", "--version", "--completion"]))} -- "$current"))',
        "    return",
        "  fi",
        '  case "$verb,$before" in',
        *words,
        "  esac",
        '  if [ -n "$words" ]; then',
        '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "    return",
        "  fi",
        '  case "$verb" in',
        *options,
        "  esac",
        '  case "$current" in',
        '    -*) COMPREPLY=($(compgen -W "$options" -- "$current")) ;;',
        "    *) COMPREPLY=() ;;",
        "  esac",
        "}",
        "complete -o default -o bashdefault -F _beitkit beitkit",
    ]
    return "\n".join(lines)


def _fish(verbs: Mapping[str, Sequence[Option]], summaries: Mapping[str, str], beside: Mapping[str, Sequence[str]]) -> str:
    lines = []
    for verb, found in verbs.items():
        lines.append(f"complete -c beitkit -n __fish_use_subcommand -a {verb} -d {_quoted(summaries[verb])}")
        for name in (*EXTRA, *beside[verb]):
            lines.append(f"complete -c beitkit -n '__fish_seen_subcommand_from {verb}' -l {name[2:]}")
        for option in found:
            if option.is_positional:
                continue
            takes = f" -x -a {_quoted(' '.join(option.choices))}" if option.choices else " -r" if option.metavar else ""
            text = option.text.split(". ")[0][:80]
            lines.append(
                f"complete -c beitkit -n '__fish_seen_subcommand_from {verb}' -l {option.name[2:]}{takes} -d {_quoted(text)}"
            )
    return "\n".join(lines)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
