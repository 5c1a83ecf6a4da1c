"""The commands, a few lines each."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import hkd
from hkd.cli import DONE, FAILED, is_first_process
from hkd.cli.parser import Parser, configured, load_plugins_of, merged, values_of
from hkd.config import (
    DEFAULTS,
    CompareConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    ReportConfig,
    SweepConfig,
    TopologyConfig,
    TrainConfig,
    TransferConfig,
    trained_network,
)
from hkd.errors import RequestError, unknown
from hkd.options import options
from hkd.recipes import list_recipes
from hkd.spec import DISTILLATION, PLUS_KD, RunSpec

Command = Callable[[list[str]], int]


def train_command(argv: list[str]) -> int:
    """train one network with cross-entropy: a teacher, or the student alone"""
    parser = Parser("train", str(train_command.__doc__), TrainConfig, run=True)
    # A pair's recipe trains its networks, too, so what only a distillation needs is accepted from a file.
    own = {entry.name for entry in options(TrainConfig)}
    parser.add(DistillConfig, [entry for entry in options(DistillConfig) if entry.name not in own], hidden=True)
    _add_method_settings(parser, argv, hidden=True)
    request = parser.parse(argv)
    if foreign := [name for name in request.given if name not in own and name != "teacher_lr"]:
        raise RequestError(f"{foreign[0]}: is for a distillation, and train learns from labels alone; see hkd distill")
    wanted = {n: v for n, v in request.values.items() if n in own or n in ("teacher_lr", "settings")}
    if unknown_names := [n for n in request.config if n not in own and not _is_of_a_distillation(n)]:
        raise unknown("config", unknown_names[0], sorted(own))
    values = trained_network(DEFAULTS["train"] | wanted, lr_given="lr" in request.given)
    spec = RunSpec.from_flat(values, ignore_other_methods=True)
    if request.print_config:
        return _print_config(spec)
    from hkd.api import train

    return _print_result(train(spec, fresh=request.fresh))


def distill_command(argv: list[str]) -> int:
    """distil a student from a teacher; with no options: digits, resnet20 -> resnet8, HKD+KD"""
    epilog = "A method's own settings: `hkd distill --method hkd --help` shows --holistic.k and so on."
    parser = Parser("distill", str(distill_command.__doc__), DistillConfig, run=True, epilog=epilog)
    _add_method_settings(parser, argv)
    request = parser.parse(argv)
    config = merged(DEFAULTS["distill"], request.config)
    spec = RunSpec.from_flat(_settings_of(config, request.given), ignore_other_methods=True)
    if request.print_config:
        return _print_config(spec)
    from hkd.api import distill

    return _print_result(distill(spec, fresh=request.fresh))


def _settings_of(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both, where the settings of a method that is not the run's are refused from the command line."""
    values = merged(config, given)
    groups = [name for name, value in given.items() if isinstance(value, Mapping)]
    if groups:
        from hkd.methods import methods

        chosen = methods[str(values["method"]).removesuffix(PLUS_KD)]
        for name in groups:
            if name != chosen.settings:
                owner = next(other for other in methods if methods[other].settings == name)
                key = next(iter(given[name]))
                raise RequestError(f"{name}.{key}: is a setting of {owner}, and the method is {values['method']}")
    return values


def _is_of_a_distillation(name: str) -> bool:
    """Whether a name in a recipe has a meaning for distillations alone: an option, or the settings of a method."""
    if name in DISTILLATION or name == "role":
        return True
    from hkd.methods import methods

    return name in {methods[method].settings for method in methods}


def compare_command(argv: list[str]) -> int:
    """several methods between the same networks, over several trials, with the table of what they gain"""
    request, config = _request("compare", compare_command, CompareConfig, argv, run=True)
    from hkd.studies.compare import compare

    comparison = compare(config, fresh=request.fresh)
    if config.dry_run:
        return DONE
    tables = Path(config.run) / "comparison.md"
    print(tables.read_text())
    print(f"tables: {tables}, .csv, .json")
    return FAILED if comparison.failed else DONE


def sweep_command(argv: list[str]) -> int:
    """how results depend on one field: several values, methods and trials, with a plot; or a search"""
    request, config = _request("sweep", sweep_command, SweepConfig, argv, run=True)
    from hkd.studies.sweep import sweep

    sweep(config, fresh=request.fresh)
    if config.dry_run:
        return DONE
    name, more = ("search", "") if config.search else ("sweep", ", .png, .svg")
    print((Path(config.run) / f"{name}.md").read_text())
    print(f"table{' and plot' if more else ''}: {config.run}/{name}.md, .csv, .json{more}")
    return DONE


def evaluate_command(argv: list[str]) -> int:
    """top-1 and top-5 of a run folder or a checkpoint on a data set"""
    _, config = _request("evaluate", evaluate_command, EvaluateConfig, argv, positional="checkpoint")
    from hkd.api import evaluate

    found = evaluate(config)
    if is_first_process():
        print(f"top-1 {found.top1:.2f} %   top-5 {found.top5:.2f} %   loss {found.loss:.4f}   {found.images:,} images")
    return DONE


def transfer_command(argv: list[str]) -> int:
    """a linear classifier on frozen networks' features, on other data: how far what was learnt carries"""
    _, config = _request("transfer", transfer_command, TransferConfig, argv, positional="checkpoints")
    from hkd.report.transfer import transfer

    transfer(config)
    tables = Path(config.run) / "transfer.md"
    print(tables.read_text())
    print(f"tables: {tables}, .csv, .json")
    return DONE


def topology_command(argv: list[str]) -> int:
    """teacher's and students' embeddings of test images side by side, and numbers for how alike they are"""
    _, config = _request("topology", topology_command, TopologyConfig, argv, positional="checkpoints")
    from hkd.report.topology import topology

    topology(config)
    print((Path(config.run) / "topology.md").read_text())
    print(f"panels: {config.run}/topology.png, .svg, .html")
    return DONE


def report_command(argv: list[str]) -> int:
    """one self-contained HTML page from run folders"""
    _, config = _request("report", report_command, ReportConfig, argv, positional="runs")
    from hkd.report.page import write_report

    file = write_report(config)
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    return DONE


def export_command(argv: list[str]) -> int:
    """a trained network as ONNX, torch.export and safetensors, checked against the original"""
    _, config = _request("export", export_command, ExportConfig, argv, positional="checkpoint")
    from hkd.deploy import export

    exported = export(config)
    for check in exported.checks:
        print(check.describe())
    print("\n".join(str(file) for file in exported.files))
    return DONE


def list_command(argv: list[str]) -> int:
    """what there is: models, methods, datasets or recipes"""
    kinds = ("models", "methods", "datasets", "recipes")
    plugins = values_of("--plugin", argv)
    words = [word for word in argv if word not in ("--plugin", *plugins) and not word.startswith("--plugin=")]
    if not words:
        raise RequestError(f"list: name one of {', '.join(kinds)}")
    if words[0] in ("-h", "--help"):
        print(f"usage: hkd list {'|'.join(kinds)} [--plugin MODULE]")
        return DONE
    if words[0] not in kinds:
        raise unknown("list", words[0], kinds)
    if len(words) > 1:
        raise RequestError(f"list: takes one word; got {' '.join(words)}")
    load_plugins_of(argv)
    names = list_recipes() if words[0] == "recipes" else getattr(hkd, f"list_{words[0]}")()
    cited = words[0] == "methods" and sys.stdout.isatty()  # a script wants the names alone
    print("\n".join(_cited(names) if cited else names))
    return DONE


def _cited(names: Sequence[str]) -> list[str]:
    """Each method with its paper: the first paragraph of its class."""
    from hkd.methods import methods

    papers = {name: " ".join((methods[name].__doc__ or "").split("\n\n")[0].split()) for name in names}
    return [f"{name:<10} {paper}" for name, paper in papers.items()]


COMMANDS: dict[str, Command] = {
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


def _request(
    name: str,
    command: Command,
    kind: Any,
    argv: list[str],
    *,
    positional: str = "",
    run: bool = False,
) -> tuple[Any, Any]:
    """What was asked of a command, and its configuration, checked."""
    request = Parser(name, str(command.__doc__), kind, positional=positional, run=run).parse(argv)
    config = configured(kind, request.values)
    if request.print_config:
        import yaml

        values = {f.name: getattr(config, f.name) for f in fields(kind)}
        plain = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(DONE)
    config.check()
    return request, config


def _add_method_settings(parser: Parser, argv: list[str], hidden: bool = False) -> None:
    """Adds the options of the methods.

    Methods need torch, so they are looked at only where their options are used or one is named for its help.
    """
    wants_help = bool({"-h", "--help"} & set(argv))
    words = " ".join(argv)
    named = re.findall(r"--method[ =](\S+)", words)
    if (wants_help and not named) or (hidden and wants_help) or not (wants_help or re.search(r"--\w+\.\w", words)):
        return
    load_plugins_of(argv)
    from hkd.methods import methods

    for name in [n.removesuffix(PLUS_KD) for n in named[-1:]] if wants_help else methods:
        method = methods[name]
        if method.settings:
            title = f"settings of {name}"
            parser.add(method.Config, options(method.Config), group=title, prefix=f"{method.settings}.", hidden=hidden)


def _print_config(spec: RunSpec) -> int:
    import yaml

    print(yaml.safe_dump(spec.to_flat(), sort_keys=False, allow_unicode=True), end="")
    return DONE


def _print_result(result: Any) -> int:
    if not is_first_process():
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
