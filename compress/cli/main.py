"""The command itself: find the verb, hand the rest of the line to it, complete a line."""

import argparse
import os
import sys
from collections.abc import Mapping
from importlib.metadata import version

from compress.cli.verbs import GROUPS, SUMMARIES, VERBS, Verb
from compress.console.terminal import print_error
from compress.errors import nearest

_SHELLS = ("bash", "zsh", "fish", "powershell")
_COMPLETION = "completion"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code of the verb, 2 where there is no such verb."""
    words = sys.argv[1:] if arguments is None else arguments
    if "_ARGCOMPLETE" in os.environ:
        _complete()
        return 0
    if words[:1] == [_COMPLETION]:
        return _print_completion(words[1:])
    if words and words[0].endswith((".yaml", ".yml")):
        words = ["run", *words]
    options = parser().parse_args(words[:1])  # -h and --version end here
    if options.verb is None:
        parser().print_help()
        return 2
    return _run("compress", options.verb, VERBS, words[1:])


def parser() -> argparse.ArgumentParser:
    """The parser of the first word; its help lists the verbs."""
    parser = argparse.ArgumentParser(
        prog="compress",
        usage="compress VERB ...",
        description="Turn a large vision model into a small one that can be shipped, and prove it.",
        epilog=_list_verbs(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", nargs="?", metavar="VERB", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"compress {version('compress')}")
    return parser


def _list_verbs() -> str:
    lines: list[str] = []
    for heading, verbs in GROUPS.items():
        lines.append(f"{heading}:")
        lines += [f"  {name:<10} {_summary(name, verb)}" for name, verb in verbs.items()]
        lines.append("")
    lines.append("compress VERB --help explains a verb's options.")
    lines.append('Completion of a line by Tab: eval "$(compress completion bash)", or zsh, fish.')
    return "\n".join(lines)


def _summary(name: str, verb: Verb | Mapping[str, Verb]) -> str:
    return verb.summary if isinstance(verb, Verb) else SUMMARIES[name]


def _run(
    prog: str, word: str, verbs: Mapping[str, Verb | Mapping[str, Verb]], rest: list[str]
) -> int:
    verb = verbs.get(word)
    if verb is None:
        print_error(f"{prog}: no verb '{word}'; there are {', '.join(verbs)}{nearest(word, verbs)}")
        return 2
    if isinstance(verb, Verb):
        return verb.run(rest)
    if rest and not rest[0].startswith("-"):
        return _run(f"{prog} {word}", rest[0], verb, rest[1:])
    print(f"usage: {prog} {word} TASK ...\n\n{SUMMARIES[word]}:")
    for name, task in verb.items():
        print(f"  {name:<14} {task.summary}")
    print(f"\n{prog} {word} TASK --help explains a task's options.")
    return 0 if rest and rest[0] in ("-h", "--help") else 2


def _print_completion(words: list[str]) -> int:
    """Print what a shell must evaluate to complete lines that begin with `compress`."""
    from argcomplete.shell_integration import shellcode

    parser = argparse.ArgumentParser(
        prog=f"compress {_COMPLETION}", description="Print a shell's completion script."
    )
    parser.add_argument("shell", choices=_SHELLS)
    shell = parser.parse_args(words).shell
    print(shellcode(["compress"], shell=shell))
    return 0


def _complete() -> None:
    """Answer the shell, which asks through the environment; what is known of a verb is its parser.

    Ends the process.
    """
    import argcomplete

    words = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "0"))].split(" ")
    names = [word for word in words[1:-1] if word]  # the last one is being typed
    verb: Verb | Mapping[str, Verb] | None = VERBS.get(names[0]) if names else None
    known = 1
    if verb is not None and not isinstance(verb, Verb):
        verb, known = (verb.get(names[1]), 2) if len(names) > 1 else (verb, 1)
    if isinstance(verb, Verb):
        os.environ["_ARGCOMPLETE"] = str(known + 1)  # the words before its own
        argcomplete.autocomplete(verb.build_parser())
        return
    choices = [*VERBS, _COMPLETION] if verb is None else list(verb)
    os.environ["_ARGCOMPLETE"] = str(len(names) + 1) if verb is not None else "1"
    chooser = argparse.ArgumentParser(prog="compress")
    chooser.add_argument("verb", choices=choices)
    argcomplete.autocomplete(chooser)
