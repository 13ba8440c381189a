"""``ddim --completion SHELL``: a script by which a shell completes verbs, options and values.

It is made from the same declarations as parsing and help, and holds everything that it completes:
at the Tab key no Python is started. No torch here.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

from ddim.base.errors import unknown
from ddim.cli.options import Option, declared, flat

__all__ = ["SHELLS", "Completed", "completed", "completion"]

OFFERS = {
    "model": ("ddim.model.names:shipped",),
    "method": ("ddim.samplers.lookup:method_names",),
    "methods": ("ddim.samplers.lookup:method_names",),
    "nodes": ("ddim.noise.nodes:NODES", "ddim.noise.foreign:FOREIGN_NODES"),
    "codec": ("ddim.latents.codecs:CODECS",),
    "codecs": ("ddim.latents.codecs:CODECS",),
    "dtypes": ("ddim.cli.reconstruct:DTYPES",),
    "backend": ("ddim.backends.names:BACKENDS",),
    "device": ("auto", "cpu", "cuda", "mps"),
    "data": ("ddim.data.names:DATASETS",),
    "images": ("ddim.data.names:DATASETS",),
    "split": ("ddim.data.names:SPLITS",),
    "steps": ("5", "10", "20", "50", "100"),
    "eta": ("0", "1", "sigma-hat"),
    "preset": ("ddim.train.config:PRESETS",),
    "bench parts": ("ddim.evaluate.speed.plan:PARTS",),
}
"""The values of an option, or MODULE:NAME of where they are listed.

By the option's name, or by its verb and its name.
"""
PATHS = ("model", "method", "methods", "data", "images")
"""Options that take a file or a folder as well as one of these values."""


@dataclasses.dataclass(frozen=True)
class Completed:
    """What a shell is to know of an option.

    Attributes:
        flags: as it is written; none for one that stands without a flag.
        words: the values that it offers.
        files: whether it may be a file or a folder.
        takes: values after its flag: none, one or many.
        about: what it is, in a sentence.
    """

    flags: tuple[str, ...]
    words: tuple[str, ...] = ()
    files: bool = False
    takes: str = "none"
    about: str = ""


def completed(verb: str) -> list[Completed]:
    """What is to be completed after a verb; those without a flag are last."""
    module = importlib.import_module(f"ddim.cli.{verb}")
    kind = getattr(module, f"{verb.title()}Options")
    about, defaults = _about(kind), _defaults(kind)
    found = [_of(verb, option, about, defaults) for option in declared(kind).values()]
    found += [
        Completed(("--config",), files=True, takes="one", about="Read options from a TOML file."),
        Completed(("--debug",), about="Show where an error comes from."),
        Completed(("--help", "-h"), about="Explain the verb."),
    ]
    return sorted(found, key=lambda one: not one.flags)


def _of(
    verb: str, option: Option, about: Mapping[str, str], defaults: Mapping[str, object]
) -> Completed:
    name = option.name.replace("_", "-")
    flags = (f"--{name}", *option.aliases)
    said = about.get(option.name, "")
    if option.switch:
        return Completed(
            (f"--no-{name}",) if defaults.get(option.name) is True else flags, about=said
        )
    if option.positional:
        flags = ()
    words = [str(choice) for choice in option.choices]
    if option.kind is bool:
        words = ["true", "false"]
    sources = OFFERS.get(f"{verb} {option.name}") or OFFERS.get(option.name, ())
    if not words and option.kind is str:
        words = [word for source in sources for word in _listed(source)]
    plain = option.kind is str and not words
    files = plain or (option.name in PATHS and option.kind is str)
    return Completed(flags, tuple(words), files, "many" if option.many else "one", said)


def _defaults(kind: type) -> dict[str, object]:
    """The default of every option that has one."""
    own = {field.name: field.default for field in dataclasses.fields(kind)}
    return own | {k: v for group in _groups(kind) for k, v in flat(group).items()}


def _listed(source: str) -> list[str]:
    """A word; or the names in a list, in a mapping, or that a function returns."""
    module, colon, name = source.partition(":")
    if not colon:
        return [source]
    found: Iterable[str] | Callable[[], Iterable[str]] = getattr(
        importlib.import_module(module), name
    )
    return list(found() if callable(found) else found)


def _about(kind: type) -> dict[str, str]:
    """The first sentence under each field of a dataclass, of its bases and of its groups."""
    found: dict[str, str] = {}
    for group in (kind, *(type(part) for part in _groups(kind))):
        for base in reversed(group.__mro__[:-1]):
            found |= _texts(base)
    return found


def _groups(kind: type) -> list[object]:
    groups = []
    for field in dataclasses.fields(kind):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if dataclasses.is_dataclass(value):
            groups.append(value)
    return groups


@functools.cache
def _texts(kind: type) -> dict[str, str]:
    """What stands under the fields in the source of a class."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):  # no source, as in a frozen program
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, text in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            plain = " ".join(str(text.value.value).split())
            found[field.target.id] = plain.partition(". ")[0].rstrip(".")
    return found


def completion(shell: str) -> str:
    """The script for a shell.

    Raises:
        InputError: no such shell.
    """
    if shell not in SHELLS:
        raise unknown("shell", shell, SHELLS)
    from ddim.cli.main import VERBS

    return SHELLS[shell](VERBS, {verb: completed(verb) for verb in VERBS})


Verbs = dict[str, str]
Table = dict[str, list[Completed]]


def _bash(verbs: Verbs, table: Table) -> str:
    """A function that reads the words typed so far; it runs in bash 3.2 too."""
    flags, values = [], []
    for verb, options in table.items():
        every = [flag for one in options for flag in one.flags]
        place = [one for one in options if not one.flags]
        words = " ".join(word for one in place for word in one.words)
        files = int(any(one.files for one in place))
        flags.append(f"{verb}) flags='{' '.join(every)}' words='{words}' files={files} ;;")
    alike: dict[tuple[str, str, bool], list[str]] = {}
    for verb, options in table.items():
        for one in options:
            if one.takes != "none":
                names = [f'"{verb} {flag}"' for flag in one.flags]
                alike.setdefault((one.takes, " ".join(one.words), one.files), []).extend(names)
    for (takes, words, files), names in alike.items():
        if names:
            shown = "|\\\n        ".join(_wrapped(names))
            sets = f"takes={takes} words='{words}' files={int(files)}"
            values.append(f"{shown})\n            {sets} ;;")
    return _BASH.format(
        verbs=" ".join(verbs),
        shells=" ".join(SHELLS),
        flags="\n        ".join(flags),
        values="\n        ".join(values),
    )


def _wrapped(names: Sequence[str], width: int = 5) -> list[str]:
    return ["|".join(names[i : i + width]) for i in range(0, len(names), width)]


_BASH = """\
# Completion of ddim for bash: ddim --completion bash > FILE, and in ~/.bashrc: source FILE
_ddim() {{
    local cur verb flag i flags words files takes count answer place place_files
    COMPREPLY=()
    cur=${{COMP_WORDS[COMP_CWORD]}}
    verb=${{COMP_WORDS[1]}}
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=( $(compgen -W '{verbs} --help --version --completion' -- "$cur") )
        return
    fi
    if [[ $verb == --completion ]]; then
        COMPREPLY=( $(compgen -W '{shells}' -- "$cur") )
        return
    fi
    case $verb in
        {flags}
        *) return ;;
    esac
    # The last flag before the cursor, and how many values stand between; bash parts --flag=value.
    flag='' count=0
    for (( i = COMP_CWORD - 1; i > 1; i-- )); do
        case ${{COMP_WORDS[i]}} in
            -[!0-9.]*) flag=${{COMP_WORDS[i]}}; break ;;
            =) ;;
            *) count=$(( count + 1 )) ;;
        esac
    done
    if [[ $cur == = ]]; then cur=''; fi
    if [[ $cur == -* ]]; then
        COMPREPLY=( $(compgen -W "$flags" -- "$cur") )
        return
    fi
    takes=none place=$words place_files=$files
    case "$verb $flag" in
        {values}
    esac
    if [[ $takes == one && $count -gt 0 ]]; then
        words=$place files=$place_files
    fi
    while IFS= read -r answer; do
        COMPREPLY+=( "$answer" )
    done < <(compgen -W "$words" -- "$cur"; if [[ $files == 1 ]]; then compgen -f -- "$cur"; fi)
    if [[ $files == 1 ]]; then
        compopt -o filenames 2>/dev/null
    fi
    return 0
}}
complete -F _ddim ddim
"""


def _zsh(verbs: Verbs, table: Table) -> str:
    """Descriptions for `_arguments`, one function for all."""
    summaries = "\n        ".join(
        f"{_quoted(f'{verb}:{_plain(text)}')}" for verb, text in verbs.items()
    )
    cases = []
    for verb, options in table.items():
        specs = [spec for one in options for spec in _zsh_specs(one)]
        lines = " \\\n                ".join(_quoted(spec) for spec in specs)
        cases.append(f"{verb})\n            _arguments -s \\\n                {lines} ;;")
    return _ZSH.format(summaries=summaries, cases="\n        ".join(cases), shells=" ".join(SHELLS))


def _zsh_specs(one: Completed) -> list[str]:
    words = f"({' '.join(one.words)})"
    if one.words and one.files:
        action = f"{{_alternative 'values:value:{words}' 'files:file:_files'}}"
    else:
        action = words if one.words else "_files" if one.files else " "
    if not one.flags:
        return [f"{'*' if one.takes == 'many' else ''}:value:{action}"]
    about = _plain(one.about)
    taken = {"none": "", "one": f":value:{action}", "many": f":*-*:value:{action}"}[one.takes]
    return [f"{flag}[{about}]{taken}" for flag in one.flags]


def _plain(text: str) -> str:
    """A text without what zsh reads as its own signs."""
    for sign in "[]:'`\\":
        text = text.replace(sign, " " if sign in "[]:" else "")
    return " ".join(text.split())


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


_ZSH = """\
#compdef ddim
# Completion of ddim for zsh: ddim --completion zsh > a folder of $fpath, as _ddim
_ddim() {{
    local -a verbs
    verbs=(
        {summaries}
        '--help:say what there is'
        '--version:say which version this is'
        '--completion:print a script as this one'
    )
    if (( CURRENT == 2 )); then
        _describe -t verbs 'verb' verbs
        return
    fi
    local verb=$words[2]
    shift words
    (( CURRENT-- ))
    case $verb in
        --completion) compadd {shells} ;;
        {cases}
    esac
}}
if [[ $funcstack[1] == _ddim ]]; then
    _ddim "$@"
else
    compdef _ddim ddim
fi
"""


def _fish(verbs: Verbs, table: Table) -> str:
    """A line for each verb and each option."""
    lines = [_FISH]
    for verb, text in verbs.items():
        lines.append(f"complete -c ddim -n __fish_use_subcommand -f -a {verb} -d {_fished(text)}")
    lines.append("complete -c ddim -n __fish_use_subcommand -l help -l version")
    shells = " ".join(SHELLS)
    lines.append(f"complete -c ddim -n __fish_use_subcommand -l completion -x -a '{shells}'")
    for verb, options in table.items():
        begin = f"complete -c ddim -n '__fish_seen_subcommand_from {verb}'"
        lines += [" ".join([begin, *_fish_parts(one)]) for one in options]
    return "\n".join(lines) + "\n"


def _fish_parts(one: Completed) -> list[str]:
    parts = [f"-{'l' if flag[:2] == '--' else 's'} {flag.lstrip('-')}" for flag in one.flags]
    if one.takes != "none" and one.flags:
        parts.append("-r -F" if one.files else "-x")
    elif one.takes != "none":
        parts.append("-F" if one.files else "-f")
    parts += [f"-a '{' '.join(one.words)}'"] if one.words else []
    return parts + ([f"-d {_fished(one.about)}"] if one.about else [])


_FISH = """\
# Completion of ddim for fish: ddim --completion fish > ~/.config/fish/completions/ddim.fish
complete -c ddim -f"""


def _fished(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: dict[str, Callable[[Verbs, Table], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
"""What makes the script of each shell."""
