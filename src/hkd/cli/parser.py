"""From words to options: each field of a configuration is an option, and a file can hold any of them."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from hkd.config import parse_value
from hkd.errors import RequestError
from hkd.files import parse_yaml, read_yaml
from hkd.options import coerce, default_of, hints_of, options, shown
from hkd.recipes import find_recipe

HELP_GROUPS = {
    "run": "checkpoint checkpoints runs run output title formats seed trials tensorboard evaluate keep_checkpoints",
    "data": "dataset datasets data_root image_size limit_classes limit_train train_fraction holdout holdout_seed "
    "mean std flip image_cache",
    "networks": "model student teacher role teachers students pairs teacher_checkpoint teacher_checkpoints "
    "student_pretrained teacher_pretrained",
    "what is learnt": "method methods baseline method_weight kd_weight ce_weight kd_temperature",
    "what is shown": "images neighbours edges k",
    "what varies": "field values search tries",
    "how": "probe epochs batch_size scale_with_processes lr lr_of lr_decay milestones momentum weight_decay teacher_lr",
    "where": "device precision compile threads workers jobs engine gpus_per_run processes_per_run dry_run",
    "when something goes wrong": "save_minutes skip_bad_steps bad_images retry_failed",
}
"""The fields of all configurations in the order in which help shows them."""


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        given: options of the command line, by their flat names.
        config: options of the ``--config`` files.
        fresh: whether to start over.
        print_config: whether to print what would be done, and stop.
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
        positional: the field that words without an option fill.
        run: whether the command has a run folder to start over in.
        hidden: options that are accepted, from recipes above all, and not shown: (prefix, dataclass).
        epilog: printed below.
    """

    def __init__(
        self, name: str, description: str, config: type, *, positional: str = "", run: bool = False, epilog: str = ""
    ) -> None:
        words = f" {positional.upper().rstrip('S')}{'...' if positional.endswith('s') else ''}" if positional else ""
        self.name, self.config, self.positional = name, config, positional
        self.parser = argparse.ArgumentParser(
            prog=f"hkd {name}", usage=f"hkd {name}{words} [options]", description=description, epilog=epilog or None,
            exit_on_error=False, allow_abbrev=False, formatter_class=_Help, argument_default=argparse.SUPPRESS,
        )  # fmt: skip
        add = self.parser.add_argument
        add("--config", action="append", metavar="FILE", help="a YAML file or the name of a recipe")
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
            if hint is bool:
                target.add_argument(flag, action=argparse.BooleanOptionalAction, **more)
            else:
                target.add_argument(flag, metavar=_metavar(hint), type=_Reader(name, hint), **more)

    def parse(self, argv: Sequence[str]) -> Request:
        """The options of a command line and its files.

        Raises:
            RequestError: a word, a value or a file is not accepted.
        """
        argv = [_dashed(word) for word in argv]
        load_plugins_of(argv)
        if {"-h", "--help"} & set(argv):
            self.parser.parse_args(argv)
        argv, words = self._apart(argv)
        try:
            given = vars(self.parser.parse_args(argv))
        except argparse.ArgumentError as error:
            raise RequestError(self._one_line(str(error))) from error
        files = given.pop("config", [])
        given.pop("plugin", None)
        fresh, show = given.pop("fresh", False), given.pop("print_config", False)
        if words:
            hint = hints_of(self.config)[self.positional]
            if hint is str and len(words) > 1:
                raise RequestError(f"{self.positional}: takes one; got {shown(' '.join(words))}")
            given[self.positional] = words[0] if hint is str else tuple(words)
        config: dict[str, Any] = {}
        for name in files:
            config = merged(config, read_config(find_recipe(name)))
        config.pop("plugins", None)
        return Request(_nested(given), config, fresh, show)

    def _apart(self, argv: list[str]) -> tuple[list[str], list[str]]:
        """Options with their values, and the words between them, wherever they are."""
        alone = {o for a in self.parser._actions if a.nargs == 0 for o in a.option_strings}
        rest, words, takes_value = [], [], False
        for word in argv:
            if takes_value or word.startswith("-"):
                rest.append(word)
                takes_value = not takes_value and "=" not in word and word not in alone
            else:
                words.append(word)
        if words and not self.positional:
            raise RequestError(f"option: unexpected {shown(words[0])}; see hkd {self.name} --help")
        return rest, words

    def _one_line(self, message: str) -> str:
        """The parsing library's message as: field, what is accepted, what was given."""
        message = " ".join(message.split())
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            option = match[1].split("=")[0]
            known = [o for action in self.parser._actions for o in action.option_strings if o.startswith("--")]
            near = difflib.get_close_matches(option, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"see hkd {self.name} --help"
            return f"option: unknown option {shown(option).strip(chr(39))}; {hint}"
        if match := re.match(r"argument --([\w.-]+)(?:/--no-[\w.-]+)?: (.*)", message):
            reason = match[2].removeprefix("invalid value: ")
            name = match[1].replace("-", "_")
            return reason if reason.startswith(f"{name}: ") else f"{name}: {reason}"
        return message


def read_config(file: Path) -> dict[str, Any]:
    """The options in a YAML file: a recipe, or the configuration of a finished run."""
    values = read_yaml(file.resolve())
    version = values.pop("format", 2)
    if version not in (1, 2):
        raise RequestError(f"config: {file} has format {shown(version)}; expected 2")
    from hkd.spec import RECORDED

    return {name.replace("-", "_"): value for name, value in values.items() if name not in RECORDED}


def load_plugins_of(argv: Sequence[str]) -> None:
    """Imports the modules that ``--plugin`` and the ``plugins`` of ``--config`` files name.

    Raises:
        RequestError: one cannot be imported, or a file cannot be read.
    """
    names = values_of("--plugin", argv)
    for file in values_of("--config", argv):
        names += coerce("plugins", read_config(find_recipe(file)).get("plugins") or (), tuple[str, ...])
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
        RequestError: a name is unknown, or a value is of the wrong type.
    """
    known = {entry.name for entry in fields(config)}
    for name, value in values.items():
        if name not in known:
            hint = "settings are part of a line of --methods" if isinstance(value, Mapping) else "see --help"
            raise RequestError(f"config: this command has no option {shown(name)}; {hint}")
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
    """An option's text as a value: a,b(c,d) is a list where one is accepted, {a: 1} or a=1,b=2 a mapping."""
    kinds = (hint, *get_args(hint)) if get_origin(hint) is not tuple else (hint,)
    origins = [get_origin(kind) for kind in kinds]
    if NoneType in kinds and text in ("none", "null"):
        return None
    if tuple in origins:
        inner = get_args(next(kind for kind in kinds if get_origin(kind) is tuple))[0]
        if text.startswith("["):
            try:
                return json.loads(text)
            except ValueError as error:
                raise RequestError(f"expected a list; got {shown(text)}") from error
        items = [item.strip() for item in re.split(r",(?![^(]*\))", text)] if text.strip() else []
        return [item if inner is str else parse_value(item) for item in items]
    if dict in origins:
        if text.startswith("{"):
            try:
                return parse_yaml(text)
            except Exception as error:
                raise RequestError(f"expected a mapping; got {shown(text)}") from error
        pairs = [item.partition("=") for item in text.split(",")]
        return {name.strip(): parse_value(value.strip()) for name, _, value in pairs}
    return text if str in kinds or not {int, float} & set(kinds) else parse_value(text)


def _metavar(hint: Any) -> str:
    kinds = (hint, *get_args(hint))
    if dict in [get_origin(kind) for kind in kinds]:
        return "{NAME: X,...}"
    if tuple in [get_origin(kind) for kind in kinds]:
        inner = get_args(next(kind for kind in kinds if get_origin(kind) is tuple))[0]
        return "TEXT,..." if inner is str else "X,..."
    literal = next((kind for kind in kinds if get_origin(kind) is Literal), None)
    if literal is not None:
        return "|".join(map(str, get_args(literal)))
    return "TEXT" if str in kinds else "X" if float in kinds else "N"


def _sentence(entry: Any) -> str:
    """The field's sentence with its default in brackets."""
    default = default_of(entry)
    text = str(entry.metadata["help"]).replace("%", "%%")
    if default in (None, False, "", (), {}):
        return text
    written = ",".join(map(str, default)) if isinstance(default, tuple) else "yes" if default is True else f"{default}"
    return f"{text} [{written}]"


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=112)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):  # the form that changes something
            on = action.option_strings[0]
            is_on = "[yes]" in (action.help or "")
            return f"--no-{on.removeprefix('--')}" if is_on else on
        return super()._format_action_invocation(action)


def _dashed(argument: str) -> str:
    """--data_root is --data-root."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument
