"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

import hkd
from hkd.config import (
    PLUS_KD,
    CompareConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    ReportConfig,
    SweepConfig,
    TopologyConfig,
    TrainConfig,
    TransferConfig,
)
from hkd.errors import RequestError, Stopped, TrainingError, unknown
from hkd.recipes import find_recipe, list_recipes

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130

HELP_GROUPS = {
    "run": "checkpoint checkpoints runs run output title formats seed trials tensorboard",
    "data": "dataset datasets data_root image_size limit_classes limit_train train_fraction flip",
    "networks": "model student teacher role teachers students pairs teacher_checkpoint teacher_checkpoints "
    "student_pretrained teacher_pretrained",
    "what is learnt": "method methods baseline method_weight kd_weight ce_weight kd_temperature",
    "what is shown": "images neighbours edges k",
    "what varies": "field values",
    "how": "probe holdout epochs batch_size scale_with_processes lr lr_of lr_decay milestones momentum weight_decay "
    "teacher_lr",
    "where": "device precision compile workers jobs",
    "when something goes wrong": "save_minutes skip_bad_steps bad_images",
}
"""The fields of all configurations in the order in which help shows them."""

METAVARS = {
    int: "N",
    float: "X",
    str: "TEXT",
    tuple[float, ...]: "X,...",
    tuple[str, ...]: "TEXT,...",
    dict[str, float]: "{NAME: X,...}",
    dict[str, str]: "{NAME: FILE,...}",
}

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
TALKS = os.environ.get("RANK", "0") == "0"
"""Of several processes (torchrun sets both) the first one speaks."""
IN_SEVERAL_PROCESSES = ("train", "distill", "evaluate")

EPILOG = {"distill": "A method's own settings: `hkd distill --method hkd --help` shows --holistic.k and so on."}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0 when done, 1 when it failed, 2 when the request was wrong, 130 or 143 when stopped."""
    argv = [_dashed(a) for a in (sys.argv[1:] if arguments is None else arguments)]
    argv = argv[1:] if argv[:1] == ["--"] else argv  # launchers need it before options of the same name as their own
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return DONE
    if argv[0] == "--version":
        print(f"hkd {hkd.__version__}")
        return DONE
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], COMMANDS)
        if PROCESSES > 1 and argv[0] not in IN_SEVERAL_PROCESSES:
            raise RequestError(f"processes: {argv[0]} uses one process, and {PROCESSES} were started")
        return COMMANDS[argv[0]](argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        status, told = _what_went_wrong(error)
        print(told if TALKS else f"process {os.environ['RANK']}: {told}", file=sys.stderr)
        return status


def _what_went_wrong(error: BaseException) -> tuple[int, str]:
    """The exit status, and the line that tells of it."""
    match error:
        case RequestError():
            return WRONG_REQUEST, f"hkd: {error}"
        case TrainingError():
            return FAILED, f"hkd: failed: {error}"
        case Stopped():
            return error.status, f"hkd: {error}"
        case KeyboardInterrupt():
            return INTERRUPTED, "\nhkd: interrupted; a run goes on from its last checkpoint with the same command"
    return FAILED, f"hkd: failed: {type(error).__name__}: {' '.join(str(error).split())}; --debug shows where"


def train_command(argv: list[str]) -> int:
    """train one network with cross-entropy: a teacher, or the student alone"""
    parser = _parser("train", train_command, TrainConfig, run=True)
    foreign = _accept_of_distillation(parser, argv)
    asked = _parse(parser, argv)
    config = TrainConfig(**_values(asked, TrainConfig))
    if asked.teacher_lr is not None and config.trained_role() == "teacher" and not _given("lr", argv):
        config = replace(config, lr=asked.teacher_lr)
    if foreign:
        raise RequestError(f"{foreign}: is about a distillation, and train learns from labels alone; see hkd distill")
    config.check()
    from hkd.jobs import train

    return _tell(train(config, fresh=asked.fresh))


def _accept_of_distillation(parser: ArgumentParser, argv: list[str]) -> str | None:
    """Lets a recipe say what only a distillation needs; a pair's networks are then trained with the pair's recipe.

    Returns the first such option that stands on the command line itself, where it would have no effect.
    """
    own = {field.name for field in fields(TrainConfig) if "help" in field.metadata}
    others = [field for field in fields(DistillConfig) if "help" in field.metadata and field.name not in own]
    _add_options(parser, DistillConfig, others, hidden=True)
    if not {"-h", "--help"} & set(argv):
        _add_method_settings(parser, argv, hidden=True)
    settings = (a.split("=")[0].removeprefix("--") for a in argv if re.match(r"--\w+\.", a))
    return next((field.name for field in others if _given(field.name, argv)), None) or next(settings, None)


def _given(name: str, argv: list[str]) -> bool:
    return any(a.split("=")[0] == f"--{name.replace('_', '-')}" for a in argv)


def distill_command(argv: list[str]) -> int:
    """distil a student from a teacher; with no options: digits, resnet20 -> resnet8, HKD+KD"""
    parser = _parser("distill", distill_command, DistillConfig, run=True)
    _add_method_settings(parser, argv)
    asked = _parse(parser, argv)
    config = DistillConfig(**_values(asked, DistillConfig), settings=_method_settings(parser, asked))
    config.check()
    from hkd.jobs import distill

    return _tell(distill(config, fresh=asked.fresh))


def compare_command(argv: list[str]) -> int:
    """several methods between the same networks, over several trials, with the table of what they gain"""
    parser = _parser("compare", compare_command, CompareConfig, run=True)
    asked = _parse(parser, argv)
    config = CompareConfig(**_values(asked, CompareConfig))
    config.check()
    from hkd.studies.compare import compare

    found = compare(config, fresh=asked.fresh)
    tables = Path(config.run) / "comparison.md"
    print(tables.read_text())
    print(f"tables: {tables}, .csv, .json")
    return FAILED if found.failed else DONE


def evaluate_command(argv: list[str]) -> int:
    """top-1 and top-5 of a run folder or a checkpoint on a data set"""
    if argv and not argv[0].startswith("-"):
        argv = ["--checkpoint", *argv]
    config = _config("evaluate", evaluate_command, EvaluateConfig, argv, "hkd evaluate CHECKPOINT [options]")
    from hkd.jobs import evaluate

    found = evaluate(config)
    if not TALKS:
        return DONE
    print(f"top-1 {found.top1:.2f} %   top-5 {found.top5:.2f} %   loss {found.loss:.4f}   {found.images:,} images")
    return DONE


def transfer_command(argv: list[str]) -> int:
    """a linear classifier on frozen networks' features, on other data: how far what was learnt carries"""
    config = _config(
        "transfer",
        transfer_command,
        TransferConfig,
        _positional("checkpoints", argv),
        "hkd transfer CHECKPOINT... [options]",
    )
    from hkd.analysis.transfer import transfer

    transfer(config)
    tables = Path(config.run) / "transfer.md"
    print(tables.read_text())
    print(f"tables: {tables}, .csv, .json")
    return DONE


def topology_command(argv: list[str]) -> int:
    """teacher's and students' embeddings of test images side by side, and numbers for how alike they are"""
    config = _config(
        "topology", topology_command, TopologyConfig, _positional("checkpoints", argv), "hkd topology RUN... [options]"
    )
    from hkd.analysis.topology import topology

    topology(config)
    print((Path(config.run) / "topology.md").read_text())
    print(f"panels: {config.run}/topology.png, .svg, .html")
    return DONE


def sweep_command(argv: list[str]) -> int:
    """how results depend on one field: several values, methods and trials, with a plot"""
    config = _config("sweep", sweep_command, SweepConfig, argv)
    from hkd.studies.sweep import sweep

    sweep(config)
    print((Path(config.run) / "sweep.md").read_text())
    print(f"table and plot: {config.run}/sweep.md, .csv, .json, .png, .svg")
    return DONE


def report_command(argv: list[str]) -> int:
    """one self-contained HTML page from run folders"""
    config = _config(
        "report", report_command, ReportConfig, _positional("runs", argv), "hkd report RUN... [--output FILE]"
    )
    from hkd.report.page import write_report

    file = write_report(config)
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    return DONE


C = TypeVar("C", bound=EvaluateConfig | ExportConfig | ReportConfig | SweepConfig | TopologyConfig | TransferConfig)


def _config(
    name: str, command: Callable[[list[str]], int], kind: type[C], argv: list[str], usage: str | None = None
) -> C:
    """A command's configuration, checked."""
    parser = _parser(name, command, kind, run=False)
    if usage is not None:
        parser.usage = usage
    config = kind(**_values(_parse(parser, argv), kind))
    config.check()
    return config


def _positional(name: str, argv: list[str]) -> list[str]:
    """Words before the first option are the values of one that takes a list."""
    count = next((n for n, word in enumerate(argv) if word.startswith("-")), len(argv))
    return [f"--{name}", json.dumps(argv[:count]), *argv[count:]] if count else argv


def export_command(argv: list[str]) -> int:
    """a trained network as ONNX, torch.export and safetensors, checked against the original"""
    if argv and not argv[0].startswith("-"):
        argv = ["--checkpoint", *argv]
    config = _config("export", export_command, ExportConfig, argv, "hkd export CHECKPOINT [options]")
    from hkd.export import export

    found = export(config)
    for check in found.checks:
        print(check.told())
    print("\n".join(str(file) for file in found.files))
    return DONE


def list_command(argv: list[str]) -> int:
    """what there is: models, methods, datasets or recipes"""
    kinds = ("models", "methods", "datasets", "recipes")
    if not argv:
        raise RequestError(f"list: name one of {', '.join(kinds)}")
    if argv[0] in ("-h", "--help"):
        print(f"usage: hkd list {'|'.join(kinds)}")
        return DONE
    if argv[0] not in kinds:
        raise unknown("list", argv[0], kinds)
    if len(argv) > 1:
        raise RequestError(f"list: takes one word; got {' '.join(argv)}")
    names = list_recipes() if argv[0] == "recipes" else getattr(hkd, f"list_{argv[0]}")()
    told = argv[0] == "methods" and sys.stdout.isatty()  # a script wants the names alone
    print("\n".join(_cited(names) if told else names))
    return DONE


def _cited(names: Sequence[str]) -> list[str]:
    """Each method with its paper: the first paragraph of its class."""
    from hkd.methods import methods

    papers = {name: " ".join((methods[name].__doc__ or "").split("\n\n")[0].split()) for name in names}
    return [f"{name:<10} {paper}" for name, paper in papers.items()]


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_command,
    "distill": distill_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    "sweep": sweep_command,
    "transfer": transfer_command,
    "topology": topology_command,
    "report": report_command,
    "export": export_command,
    "list": list_command,
}


def _overview() -> str:
    lines = [
        "usage: hkd COMMAND [options]",
        "",
        "Distil a large image classifier into a small one.",
        "",
        *(f"  {name:<10} {command.__doc__}" for name, command in COMMANDS.items()),
        "",
        "`hkd COMMAND --help` tells the options of a command, `hkd --version` the version.",
        "--debug shows where an unexpected error arose.",
    ]
    return "\n".join(lines)


def _parser(name: str, command: Callable[[list[str]], int], config: type, *, run: bool) -> ArgumentParser:
    """A parser with an option for each field of a configuration: field_name is --field-name."""
    parser = ArgumentParser(
        prog=f"hkd {name}",
        usage=f"hkd {name} [options]",
        description=command.__doc__,
        epilog=EPILOG.get(name),
        exit_on_error=False,
        allow_abbrev=False,
        print_config="--print-%s",
        formatter_class=_Help,
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="a YAML file or the name of a recipe")
    if run:
        parser.add_argument("--fresh", action="store_true", help="start over; an earlier run is kept aside")
    known = {field.name: field for field in fields(config) if "help" in field.metadata}
    for title, names in HELP_GROUPS.items():
        _add_options(parser.add_argument_group(title), config, [known[n] for n in names.split() if n in known])
    return parser


def _add_options(
    group: Any, config: type, chosen: Sequence[Field[Any]], prefix: str = "", hidden: bool = False
) -> None:
    hints = get_type_hints(config)
    for field in chosen:
        hint = hints[field.name]
        more: dict[str, Any] = {"type": hint}
        if hint is bool:
            more = {"action": ActionYesNo(no_prefix="no-")}
        for kind, metavar in METAVARS.items():
            if hint in (kind, kind | None):
                more["metavar"] = metavar
        name = f"--{prefix}{field.name.replace('_', '-')}"
        default = field.default if field.default_factory is MISSING else field.default_factory()
        group.add_argument(name, default=default, help=argparse.SUPPRESS if hidden else field.metadata["help"], **more)


class _Help(DefaultHelpFormatter):
    """Help with each default in brackets and no types: what is accepted stands in the sentence."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)  # type: ignore[no-untyped-call]

    def _get_help_string(self, action: argparse.Action) -> str:
        silent = action.default in (None, False, "", (), {}, argparse.SUPPRESS) or not action.option_strings
        return (action.help or "") + ("" if silent else f" [{_written(action.default)}]")


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "yes" if value is True else str(value)


def _add_method_settings(parser: ArgumentParser, argv: list[str], hidden: bool = False) -> None:
    """Adds the options of the methods. Methods need torch: plain help does without, help on a method shows its own."""
    wants_help = bool({"-h", "--help"} & set(argv))
    named = re.findall(r"--method[ =](\S+)", " ".join(argv))
    if wants_help and not named:
        return
    from hkd.methods import methods

    for name in [n.removesuffix(PLUS_KD) for n in named[-1:]] if wants_help else methods:
        method = methods[name]
        if method.settings:
            group = parser.add_argument_group(f"settings of {name}")
            _add_options(group, method.Config, fields(method.Config), f"{method.settings}.", hidden)


def _method_settings(parser: ArgumentParser, asked: Namespace) -> dict[str, Any]:
    """The settings of the chosen method that differ from its defaults; those of another method are refused."""
    from hkd.methods import methods

    chosen = methods[asked.method.removesuffix(PLUS_KD)]
    given: dict[str, Any] = {}
    for name in methods:
        prefix = methods[name].settings
        for key, value in vars(asked[prefix]).items() if prefix else ():
            if value == parser.get_default(f"{prefix}.{key}"):
                continue
            if methods[name] is not chosen:
                raise RequestError(f"{prefix}.{key}: is a setting of {name}, and the method is {asked.method}")
            given[key] = value
    return given


def _listed(parser: ArgumentParser, argv: list[str]) -> list[str]:
    """a,b(c,d) is a list where an option takes one; commas within parentheses belong to an item."""
    lists = {o for action in parser._actions if action.metavar in ("X,...", "TEXT,...") for o in action.option_strings}
    parts = [part for a in argv for part in (a.split("=", 1) if a.split("=")[0] in lists else [a])]
    return [
        json.dumps([item.strip() for item in re.split(r",(?![^(]*\))", value)])
        if before in lists and not value.startswith("[")
        else value
        for before, value in zip(["", *parts], parts, strict=False)
    ]


def _parse(parser: ArgumentParser, argv: list[str]) -> Namespace:
    argv = _listed(parser, argv)
    argv = [part for a in argv for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    argv = [str(find_recipe(a)) if before == "--config" else a for before, a in zip(["", *argv], argv, strict=False)]
    try:
        return parser.parse_args(argv)
    except argparse.ArgumentError as error:
        raise RequestError(_one_line(str(error), parser)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"config: cannot be read ({error})") from error


def _one_line(message: str, parser: ArgumentParser) -> str:
    """The parsing library's message as: field, what is accepted, what was given."""
    message = " ".join(message.split())
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        return _unknown_option(match[1].split("=")[0], parser)
    if match := re.match(r"Option '(\S+)' is not accepted", message):
        return _unknown_option(f"--{match[1].replace('_', '-')}", parser)
    message = re.sub(r'Parser key "([^"]+)": ?', r"\1: ", message)
    message = re.sub(r"argument --(\S+): ", r"\1: ", message)
    message = re.sub(r"Expected a typing\.Literal\[(.*?)\]\.", lambda m: f"expected one of {m[1]}.", message)
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    return message.replace("Expected a ", "expected ").replace(". Got value:", "; got")


def _unknown_option(option: str, parser: ArgumentParser) -> str:
    options = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
    near = difflib.get_close_matches(option, options, n=3)
    return f"option: unknown option {option}; " + (
        f"did you mean {' or '.join(near)}?" if near else f"see {parser.prog} --help"
    )


def _dashed(argument: str) -> str:
    """--data_root is --data-root."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _values(asked: Namespace, config: type) -> dict[str, Any]:
    return {field.name: asked[field.name] for field in fields(config) if field.name in asked}


def _tell(result: Any) -> int:
    if not TALKS:
        return DONE
    summary = result.summary
    if result.skipped:
        print(f"{result.run} is finished; --fresh starts over")
    if "teacher_top1" in summary:
        print(f"teacher:    top-1 {summary['teacher_top1']:.2f} %")
    print(f"last epoch: top-1 {summary['top1_last']:.2f} %, top-5 {summary['top5_last']:.2f} %   "
          f"(best top-1 {summary['top1_best']:.2f} % in epoch {summary['best_epoch']})")  # fmt: skip
    print(f"weights: {result.weights}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
