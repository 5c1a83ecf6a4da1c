"""From words to options: each field of a configuration is an option, and a file can hold any of them."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from yaml import YAMLError

from hkd.cli.trust import check_networks, check_plugins, trusts_files
from hkd.config import parse_value
from hkd.errors import RequestError
from hkd.files import parse_yaml, read_yaml
from hkd.options import coerce, default_of, hints_of, options, shown
from hkd.outside import printable
from hkd.recipes import find_recipe
from hkd.spec import FORMAT, RECORDED

HELP_GROUPS = {
    "run": "checkpoint checkpoints runs run output title formats seed trials logger tensorboard evaluate "
    "keep_checkpoints",
    "the model card": "license data_license teacher_license",
    "the ONNX files": "opset int8 max_drop calibration_images",
    "data": "dataset datasets data_root image_size limit_classes limit_train train_fraction holdout holdout_seed "
    "unlabelled unlabelled_share pseudo_labels "
    "mean std augment min_crop flip mixup cutmix balance views image_cache image_cache_gb",
    "networks": "model student teacher role teachers students pairs teacher_checkpoint teacher_checkpoints "
    "student_pretrained teacher_pretrained student_weights teacher_weights teacher_train "
    "student_train teacher_image_size",
    "teacher cache": "list prune teacher_cache teacher_cache_gb teacher_cache_dtype",
    "what is learnt": "method methods baseline method_weight kd_weight ce_weight kd_temperature kd_standardise",
    "what is shown": "images top neighbours edges k",
    "what varies": "field values search tries",
    "how": "probe epochs patience batch_size accumulate scale_with_processes optimizer lr lr_of teacher_lr schedule "
    "lr_decay milestones min_lr warmup_epochs momentum weight_decay decay_all label_smoothing clip_grad ema",
    "where": "device precision compile threads workers jobs engine gpus_per_run processes_per_run dry_run",
    "when something goes wrong": "save_minutes skip_bad_steps bad_images retry_failed",
}
"""The fields of all configurations in the order in which help shows them."""


@dataclass(frozen=True)
class Request:
    """The options of one command.

    Attributes:
        given: those of the command line, by their flat names.
        config: those of the ``--config`` files.
        fresh: whether to start over.
        print_config: whether to print the configuration and stop.
    """

    given: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    print_config: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """Both, the command line first; settings of one method in a file and on the command line are joined."""
        return merged(self.config, self.given)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Options of two sources; where both have one, ``above`` counts. Groups of settings are joined."""
    values = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(values.get(name), Mapping)
        values[name] = {**values[name], **value} if both else value
    return values


class Parser:
    """A command's options.

    Args:
        name: of the command.
        description: a sentence.
        config: the dataclass whose fields are the options; ``field_name`` is ``--field-name``.
        positional: the fields that words without an option fill, in order; the last may take several.
        run: whether the command has a run folder to start over in.
        epilog: printed below.
    """

    def __init__(
        self, name: str, description: str, config: type, *, positional: str = "", run: bool = False, epilog: str = ""
    ) -> None:
        self.name, self.config, self.positional = name, config, positional.split()
        words = "".join(f" {w.upper().rstrip('S')}{'...' if w.endswith('s') else ''}" for w in self.positional)
        self.repeated: set[str] = set()  # options that may be given several times
        self.parser = _Arguments(
            prog=f"hkd {name}", usage=f"hkd {name}{words} [options]", description=description, epilog=epilog or None,
            allow_abbrev=False, formatter_class=_Help, argument_default=argparse.SUPPRESS,
        )  # fmt: skip
        add = self.parser.add_argument
        add("--config", action="append", metavar="FILE", help="a YAML file or the name of a recipe")
        add("--trust-config", action="store_true", help="networks and plugins in these files may be code to import")
        add(
            "--plugin",
            action="append",
            metavar="MODULE",
            help="import this first: it adds methods, models or data sets",
        )
        add("--print-config", action="store_true", help="print the configuration and do nothing")
        if run:
            add("--fresh", action="store_true", help="start over; an earlier run is kept aside")
        known = {entry.name: entry for entry in options(config)}
        for title, names in HELP_GROUPS.items():
            chosen = [known.pop(n) for n in names.split() if n in known]
            if chosen:
                self.add(config, chosen, group=title)
        assert not known, f"options without a place in the help: {', '.join(known)}"

    def add(
        self, config: type, chosen: Sequence[Any], *, group: str = "", prefix: str = "", hidden: bool = False
    ) -> None:
        """Adds fields of a dataclass as options."""
        target: Any = self.parser.add_argument_group(group) if group and not hidden else self.parser
        hints = hints_of(config)
        for entry in chosen:
            hint, name = hints[entry.name], f"{prefix}{entry.name}"
            flag = f"--{prefix}{entry.name.replace('_', '-')}"
            more: dict[str, Any] = {"dest": name, "help": argparse.SUPPRESS if hidden else _sentence(entry)}
            if _repeats(hint):
                self.repeated.add(name)
                hint = str | None
                more["action"] = "append"
            if hint is bool:
                target.add_argument(flag, action=argparse.BooleanOptionalAction, **more)
            else:
                target.add_argument(flag, metavar=_metavar(hint), type=_Reader(name, hint), **more)

    def parse(self, argv: Sequence[str]) -> Request:
        """The options of a command line and its files.

        Raises:
            RequestError: a word, a value or a file is not accepted.
        """
        load_plugins_of(argv)
        if {"-h", "--help"} & set(argv):
            self.parser.print_help()
            raise SystemExit(0)
        assigned, words = self._split([_dashed(word) for word in argv])
        given = vars(self.parser.parse_args(assigned))
        files = given.pop("config", [])
        given.pop("plugin", None)
        trusted = given.pop("trust_config", False)
        fresh, show = given.pop("fresh", False), given.pop("print_config", False)
        for name in self.repeated & given.keys():
            given[name] = given[name][0] if len(given[name]) == 1 else tuple(given[name])
        if words:
            given |= self._positional(words, given)
        config: dict[str, Any] = {}
        origin: dict[str, Path] = {}
        for name in files:
            values = read_config(file := find_recipe(name))
            config, origin = merged(config, values), origin | dict.fromkeys(values, file)
        if not trusted:
            check_networks(config, given, origin)
        config.pop("plugins", None)
        return Request(_nested(given), config, fresh, show)

    def _split(self, argv: Sequence[str]) -> tuple[list[str], list[str]]:
        """Options, each in one word with its value (``--lr=0.1``), and the words between them, wherever they are."""
        flags = {o for action in self.parser._actions if action.nargs == 0 for o in action.option_strings}
        assigned: list[str] = []
        words: list[str] = []
        rest = list(argv)
        while rest:
            word = rest.pop(0)
            if word == "--":
                words, rest = words + rest, []
            elif not word.startswith("-"):
                words.append(word)
            elif "=" in word or word in flags or not rest or rest[0].startswith("--"):
                assigned.append(word)
            else:
                assigned.append(f"{word}={rest.pop(0)}")
        return assigned, words

    def _positional(self, words: list[str], given: Mapping[str, Any]) -> dict[str, str | tuple[str, ...]]:
        """The values of the fields that words without an option fill: of those that no option names."""
        if not self.positional:
            raise RequestError(f"option: unexpected {shown(words[0])}; see hkd {self.name} --help")
        if not (free := [name for name in self.positional if name not in given]):
            name = self.positional[0]
            raise RequestError(f"{name}: named with --{name} and again as {shown(words[0])}")
        *single, last = free
        values: dict[str, str | tuple[str, ...]] = dict(zip(single, words, strict=False))
        rest = words[len(single) :]
        several = hints_of(self.config)[last] is not str
        if not several and len(rest) > 1:
            raise RequestError(f"{last}: takes one; got {shown(' '.join(rest))}")
        return values | ({last: tuple(rest) if several else rest[0]} if rest else {})


class _Arguments(argparse.ArgumentParser):
    """Reports what is wrong as this project does: field, what is accepted, what was given."""

    def error(self, message: str) -> NoReturn:
        message = printable(" ".join(message.split()), 2000)
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            known = [o for action in self._actions for o in action.option_strings if o.startswith("--")]
            option = match[1].split("=")[0]
            near = difflib.get_close_matches(option, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"see {self.prog} --help"
            raise RequestError(f"option: unknown option {shown(option).strip(chr(39))}; {hint}")
        if match := re.match(r"argument (?:-\w/)?--([\w.-]+)(?:/--[\w.-]+)?: (.*)", message):
            name, reason = match[1].replace("-", "_"), match[2]
            if "ignored explicit argument" in reason:
                reason = f"takes no value {printable(reason.removeprefix('ignored explicit argument '))}"
            raise RequestError(reason if re.match(rf"{re.escape(name)}[.:]", reason) else f"{name}: {reason}")
        raise RequestError(f"option: {message}")


def read_config(file: Path) -> dict[str, Any]:
    """The options in a YAML file: a recipe, or the configuration of a finished run."""
    values = read_yaml(file.resolve())
    version = values.pop("format", FORMAT)
    if version not in (1, FORMAT):
        raise RequestError(f"config: {file} has format {shown(version)}; expected 1 or {FORMAT}")
    return {name.replace("-", "_"): value for name, value in values.items() if name not in RECORDED}


def load_plugins_of(argv: Sequence[str]) -> None:
    """Imports the modules that ``--plugin`` and the ``plugins`` of ``--config`` files name.

    Raises:
        RequestError: one cannot be imported, a file cannot be read, or one that is not trusted names a module that
            the command line does not name.
    """
    typed, trusted = values_of("--plugin", argv), trusts_files(argv)
    names = list(typed)
    for name in values_of("--config", argv):
        of_file = coerce("plugins", read_config(file := find_recipe(name)).get("plugins") or (), tuple[str, ...])
        if not trusted:
            check_plugins(file, of_file, typed)
        names += of_file
    if names:
        from hkd.registry import load_plugins

        load_plugins(names)


def values_of(option: str, argv: Sequence[str]) -> list[str]:
    """What an option is given on a command line, as ``--option value`` or ``--option=value``."""
    after = [value for word, value in itertools.pairwise(argv) if word == option]
    return after + [word.partition("=")[2] for word in argv if word.startswith(f"{option}=")]


def _nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """``holistic.k`` as an item of ``holistic``."""
    nested: dict[str, Any] = {}
    for name, value in given.items():
        group, dot, key = name.partition(".")
        if dot:
            nested.setdefault(group, {})[key] = value
        else:
            nested[name] = value
    return nested


def configured(config: type, values: Mapping[str, Any]) -> Any:
    """A command's configuration from its options.

    Raises:
        RequestError: a value is of the wrong type.
    """
    hints = hints_of(config)
    return config(**{name: coerce(name, value, hints[name]) for name, value in values.items()})


class _Reader:
    """What an option's text means, in the type of its field."""

    def __init__(self, name: str, hint: Any) -> None:
        self.name, self.hint = name, hint

    def __call__(self, text: str) -> Any:
        try:
            return coerce(self.name, parse_text(text, self.hint), self.hint)
        except RequestError as error:
            raise argparse.ArgumentTypeError(str(error)) from error


def parse_text(text: str, hint: Any) -> Any:
    """An option's text as a value: ``a,b(c,d)`` or ``[a, b]`` as a list, ``a=1,b=2`` or ``{a: 1}`` as a mapping."""
    kinds = _kinds(hint)
    if NoneType in kinds and text in ("none", "null"):
        return None
    if inner := _items_of(tuple, hint):
        return [item if inner[0] is str else parse_value(item) for item in _split_list(text)]
    if _items_of(dict, hint):
        return _split_mapping(text)
    values = {kind: {type(value) for value in get_args(kind)} for kind in kinds if get_origin(kind) is Literal}
    numbers = {int, float} & {*kinds, *(one for types in values.values() for one in types)}
    return parse_value(text) if numbers and str not in kinds else text


def _repeats(hint: Any) -> bool:
    """Whether an option takes a text or several, which are given one by one: a path may have commas."""
    return str in (kinds := _kinds(hint)) and any(get_origin(kind) is tuple for kind in kinds)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of which a field's value is one."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _items_of(container: type, hint: Any) -> tuple[Any, ...]:
    """The types of a container's items, where a field takes one."""
    return next((get_args(kind) for kind in _kinds(hint) if get_origin(kind) is container), ())


def _split_list(text: str) -> list[str]:
    """The items between commas outside parentheses; brackets around all and quotes around one may be there."""
    text = text.strip()
    if text.startswith("["):
        with suppress(ValueError):
            return [str(item) for item in json.loads(text)]
        if not text.endswith("]"):
            raise RequestError(f"expected a list; got {shown(text)}")
        text = text[1:-1].strip()
    items = [item.strip() for item in re.split(r",(?![^(]*\))", text)] if text else []
    return [item[1:-1] if re.fullmatch(r"'[^']*'|\"[^\"]*\"", item) else item for item in items]


def _split_mapping(text: str) -> Any:
    if text.startswith("{"):
        try:
            return parse_yaml(text)
        except (YAMLError, ValueError, RecursionError) as error:
            raise RequestError(f"expected a mapping; got {shown(text)}") from error
    pairs = [item.partition("=") for item in text.split(",") if item.strip()]
    if broken := next((item for item in pairs if not (item[0].strip() and item[1])), None):
        raise RequestError(f"expected NAME=VALUE,...; got {shown(''.join(broken))}")
    return {name.strip(): parse_value(value.strip()) for name, _, value in pairs}


def _metavar(hint: Any) -> str:
    kinds = _kinds(hint)
    if inner := _items_of(dict, hint):
        return f"NAME={_metavar(inner[1])},..."
    if inner := _items_of(tuple, hint):
        return f"{_metavar(inner[0])},..."
    if (choice := next((kind for kind in kinds if get_origin(kind) is Literal), None)) is not None:
        return "|".join(map(str, get_args(choice)))
    return "TEXT" if str in kinds else "X" if float in kinds else "N"


def _sentence(entry: Any) -> str:
    """The field's sentence with its default in brackets."""
    default = default_of(entry)
    text = str(entry.metadata["help"]).replace("%", "%%")
    if default is None or default is False or default in ("", (), {}):
        return text
    if isinstance(default, tuple):
        return f"{text} [{','.join(map(str, default))}]"
    return f"{text} [{'on' if default is True else f'{default:g}' if isinstance(default, float) else default}]"


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=112)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction) and not (action.help or "").endswith("[on]"):
            return action.option_strings[0]  # the form that changes something
        return super()._format_action_invocation(action)


def _dashed(argument: str) -> str:
    """--data_root is --data-root."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument
