"""The commands, a few lines each."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hkd
from hkd.cli import DONE, FAILED, is_first_process, processes
from hkd.cli.parser import Parser, Request, configured, load_plugins_of, merged, values_of
from hkd.config import (
    DEFAULTS,
    CacheConfig,
    CompareConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    ReportConfig,
    SweepConfig,
    TopologyConfig,
    TrainConfig,
    TransferConfig,
    trained_network,
    trained_role,
)
from hkd.errors import RequestError, unknown
from hkd.options import options, shown
from hkd.outside import printable
from hkd.pretrained import overview, sources
from hkd.recipes import list_recipes
from hkd.spec import DISTILLATION, PLUS_KD, RECORDED, RunSpec
from hkd.studies.command_line import launcher

Command = Callable[[list[str]], int]


def train_command(argv: list[str]) -> int:
    """train one network with cross-entropy: a teacher, or the student alone"""
    parser = Parser("train", str(train_command.__doc__), TrainConfig, run=True)
    # A pair's recipe trains its networks, too, so what only a distillation needs is accepted from a file.
    accepted = {entry.name for entry in options(TrainConfig)}
    parser.add(DistillConfig, [entry for entry in options(DistillConfig) if entry.name not in accepted], hidden=True)
    _add_method_settings(parser, argv, hidden=True)
    request = parser.parse(argv)
    for name, value in request.given.items():
        if name not in accepted and name != "teacher_lr":
            option = f"{name}.{next(iter(value))}" if isinstance(value, Mapping) else name
            raise RequestError(f"{option}: is for a distillation, and train learns from labels alone; see hkd distill")
    _check_names("train", request.config, accepted | set(DISTILLATION))
    values = {name: value for name, value in request.values.items() if name in accepted or name == "teacher_lr"}
    lr_given = "lr" in request.given and "teacher_lr" not in request.given
    if "teacher_lr" in request.given and trained_role(values) == "student":
        raise RequestError("teacher_lr: is the teacher's, and the student is trained; name --lr, or --role teacher")
    spec = RunSpec.from_flat(trained_network(DEFAULTS["train"] | values, lr_given=lr_given))
    if request.print_config:
        return _print_config(spec)
    from hkd.api import train

    return _print_result(train(spec, fresh=request.fresh))


def distill_command(argv: list[str]) -> int:
    """distil a student from a teacher; with no options: digits, resnet20 -> resnet8, HKD+KD"""
    epilog = "Settings of a method: `hkd distill --method hkd --help` shows --holistic.k and so on."
    parser = Parser("distill", str(distill_command.__doc__), DistillConfig, run=True, epilog=epilog)
    _add_method_settings(parser, argv)
    request = parser.parse(argv)
    _check_names("distill", request.config, {entry.name for entry in options(DistillConfig)})
    values = merged(DEFAULTS["distill"], merged(_for_method(request.config, request.given), request.given))
    _check_settings(str(values["method"]), request.given)
    spec = RunSpec.from_flat(values, ignore_other_methods=True)
    if request.print_config:
        return _print_config(spec)
    from hkd.api import distill

    return _print_result(distill(spec, fresh=request.fresh))


def _for_method(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A file's options without the weights of its method, where the command line names another method.

    ``NAME+kd`` on the command line sets the KD term's weight, whatever the file's is.
    """
    here, there = given.get("method"), config.get("method")
    if here is None:
        return dict(config)
    weights: tuple[str, ...] = ()
    if there is not None and str(there).removesuffix(PLUS_KD) != here.removesuffix(PLUS_KD):
        weights = ("method_weight", "kd_weight", "ce_weight")
    elif here.endswith(PLUS_KD):
        weights = ("kd_weight",)
    return {name: value for name, value in config.items() if name not in weights}


def _check_settings(method: str, given: Mapping[str, Any]) -> None:
    """Raises :class:`RequestError` for settings on the command line that are not the method's."""
    groups = {name: value for name, value in given.items() if isinstance(value, Mapping)}
    if not groups:
        return
    from hkd.methods import methods

    chosen = methods[method.removesuffix(PLUS_KD)]
    for name, settings in groups.items():
        if name != chosen.settings:
            owner = next(other for other in methods if methods[other].settings == name)
            raise RequestError(f"{name}.{next(iter(settings))}: is a setting of {owner}, and the method is {method}")


def _check_names(command: str, config: Mapping[str, Any], known: set[str]) -> None:
    """Raises :class:`RequestError` for a name in a file that the command does not have; methods' settings pass."""
    unknown_names = [name for name in config if name not in known]
    if command in ("train", "distill") and unknown_names:
        from hkd.methods import methods

        groups = {methods[method].settings for method in methods}
        unknown_names = [name for name in unknown_names if name not in groups]
    for name in unknown_names:
        others = [other for other, kind in CONFIGS.items() if name in {entry.name for entry in options(kind)}]
        if near := difflib.get_close_matches(name, known, n=3):
            hint = f"did you mean {' or '.join(near)}?"
        else:
            hint = f"it is an option of hkd {', hkd '.join(others)}" if others else f"see hkd {command} --help"
        raise RequestError(f"config: hkd {command} has no option {shown(name)}; {hint}")


def compare_command(argv: list[str]) -> int:
    """several methods between the same networks, over several trials, with the table of what they gain"""
    request, config = _request("compare", compare_command, argv, run=True)
    from hkd.studies.compare import compare

    comparison = compare(config, fresh=request.fresh)
    if config.dry_run:
        return DONE
    tables = Path(config.run) / "comparison.md"
    print(tables.read_text())
    print(f"tables: {tables}, .tex, .csv, .json")
    return FAILED if comparison.failed else DONE


def sweep_command(argv: list[str]) -> int:
    """how results depend on one field: several values, methods and trials, with a plot; or a search"""
    request, config = _request("sweep", sweep_command, argv, run=True)
    from hkd.studies.sweep import sweep

    sweep(config, fresh=request.fresh)
    if config.dry_run:
        return DONE
    tables = Path(config.run) / ("search.md" if config.search else "sweep.md")
    print(tables.read_text())
    drawn = not config.search and tables.with_suffix(".png").exists()  # without Matplotlib a sweep has no plot
    print(f"table{' and plot' if drawn else ''}: {tables}, .csv, .json{', .png, .svg' if drawn else ''}")
    return DONE


def evaluate_command(argv: list[str]) -> int:
    """top-1 and top-5 of a run folder or a checkpoint on a data set"""
    _, config = _request("evaluate", evaluate_command, argv, positional="checkpoint")
    from hkd.api import evaluate

    result = evaluate(config)
    if is_first_process():
        top5 = f"   top-5 {result.top5:.2f} %" if len(result.classes) > TOP else ""
        top = f"top-1 {result.top1:.2f} %{top5}   loss {result.loss:.4f}"
        print(f"{top}   {result.images:,} images: {printable(result.source)}")
        print(f"balanced accuracy {result.balanced_accuracy:.2f} %\n\n{_accuracy_table(result)}")
    return DONE


TOP = 5
"""Top-5 is shown of more classes than this; of fewer it is 100 %."""
MOST_ROWS = 50
"""Classes in the table of an evaluation; of more, those that are recognised worst."""


def _accuracy_table(result: Any) -> str:
    """The accuracy of each class, the worst first."""
    from tabulate import tabulate

    rows = [
        [printable(name, 60), images, 100 * right / images]
        for name, images, right in zip(result.classes, *(part.tolist() for part in result.by_class), strict=True)
        if images
    ]
    rows.sort(key=lambda row: row[2])
    table = tabulate(rows[:MOST_ROWS], ["class", "images", "accuracy in %"], floatfmt=".2f", disable_numparse=[0])
    return table if len(rows) <= MOST_ROWS else f"{table}\n({len(rows) - MOST_ROWS:,} classes more)"


def predict_command(argv: list[str]) -> int:
    """the classes of image files, folders and zip archives, as CSV: file, rank, class, probability"""
    _, config = _request("predict", predict_command, argv, positional="checkpoint images")
    from hkd.prediction import predict_files

    predictions = predict_files(config)
    if config.output is None:
        print(predictions.as_csv(escaped=sys.stdout.isatty()), end="")
    else:
        predictions.save(config.output)
        print(f"{config.output} ({len(predictions.of):,} images)")
    return FAILED if predictions.skipped else DONE


def transfer_command(argv: list[str]) -> int:
    """a linear classifier on frozen networks' features, on other data: how far what was learnt carries"""
    _, config = _request("transfer", transfer_command, argv, positional="checkpoints")
    from hkd.report.transfer import transfer

    transfer(config)
    tables = Path(config.run) / "transfer.md"
    print(tables.read_text())
    print(f"tables: {tables}, .csv, .json")
    return DONE


def topology_command(argv: list[str]) -> int:
    """teacher's and students' embeddings of test images side by side, and numbers for how alike they are"""
    _, config = _request("topology", topology_command, argv, positional="checkpoints")
    from hkd.report.topology import topology

    topology(config)
    print((Path(config.run) / "topology.md").read_text())
    print(f"panels: {config.run}/topology.png, .svg, .html")
    return DONE


def report_command(argv: list[str]) -> int:
    """one self-contained HTML page from run folders"""
    _, config = _request("report", report_command, argv, positional="runs")
    from hkd.report.page import write_report

    file = write_report(config)
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB)")
    return DONE


def export_command(argv: list[str]) -> int:
    """a trained network as ONNX, torch.export and safetensors, checked against the original"""
    _, config = _request("export", export_command, argv, positional="checkpoint")
    from hkd.deploy import export

    exported = export(config)
    print("\n".join(exported.describe()))
    print("\n".join(str(file) for file in exported.files))
    return DONE


def list_command(argv: list[str]) -> int:
    """what there is: models, methods, datasets, recipes or checkpoints that others publish"""
    kinds = ("models", "methods", "datasets", "recipes", "checkpoints")
    if {"-h", "--help"} & set(argv):
        print(f"usage: hkd list {'|'.join(kinds)} [--plugin MODULE]\n\n{list_command.__doc__}")
        return DONE
    words = _words(argv)
    if not words:
        raise RequestError(f"list: name one of {', '.join(kinds)}")
    if words[0] not in kinds:
        raise unknown("list", words[0], kinds)
    if len(words) > 1:
        raise RequestError(f"list: takes one word; got {shown(' '.join(words))}")
    load_plugins_of(argv)
    if words[0] == "checkpoints":
        print(f"{overview()}\n\nThis command downloads none of them; NAME and FILE are to be had from:\n{sources()}")
        return DONE
    names = list_recipes() if words[0] == "recipes" else getattr(hkd, f"list_{words[0]}")()
    cited = words[0] == "methods" and sys.stdout.isatty()  # a script wants the names alone
    print("\n".join(_cited(names) if cited else names))
    return DONE


def _words(argv: Sequence[str]) -> list[str]:
    """The words of a command without a configuration; the modules that --plugin names are not among them."""
    rest, words = list(argv), []
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word == "--plugin":
            if not (value if equals else rest.pop(0) if rest else ""):
                raise RequestError("plugin: expected the name of a module")
        elif word.startswith("-"):
            raise RequestError(f"option: unknown option {printable(word, 80)}; see hkd list --help")
        else:
            words.append(word + equals + value)
    return words


def _cited(names: Sequence[str]) -> list[str]:
    """Each method with its paper: the first paragraph of its class."""
    from hkd.methods import methods

    papers = {name: " ".join((methods[name].__doc__ or "").split("\n\n")[0].split()) for name in names}
    return [f"{name:<10} {paper}" for name, paper in papers.items()]


def cache_command(argv: list[str]) -> int:
    """what a teacher says of every view of every image, computed once; --list, --prune look after tables"""
    _, config = _request("cache", cache_command, argv, positional="checkpoint")
    from hkd.runtime.teacher_cache import prune, tables_in

    if config.list or config.prune:
        folder = Path(config.list or config.prune)
        if not os.path.isdir(folder):
            raise RequestError(f"{'list' if config.list else 'prune'}: no folder {folder}")
        gone = [] if config.list else prune(folder, config.teacher_cache_gb)
        for table in gone or tables_in(folder):
            print(f"{'deleted ' if gone else ''}{table.describe()}")
        return DONE
    import torch

    devices = torch.cuda.device_count() if config.device in ("auto", "cuda") and processes() == 1 else 1
    if devices > 1:  # a process for each
        return subprocess.run([sys.executable, *launcher(devices), "cache", *argv], check=False).returncode
    from hkd.api import fill_cache

    line = fill_cache(config)
    if is_first_process():
        print(line)
    return DONE


COMMANDS: dict[str, Command] = {
    "train": train_command,
    "distill": distill_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "compare": compare_command,
    "sweep": sweep_command,
    "transfer": transfer_command,
    "topology": topology_command,
    "report": report_command,
    "export": export_command,
    "cache": cache_command,
    "list": list_command,
}


CONFIGS: dict[str, Any] = {
    "train": TrainConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "compare": CompareConfig,
    "sweep": SweepConfig,
    "transfer": TransferConfig,
    "topology": TopologyConfig,
    "report": ReportConfig,
    "export": ExportConfig,
    "cache": CacheConfig,
}
"""The options of each command."""


def _request(
    name: str, command: Command, argv: list[str], *, positional: str = "", run: bool = False
) -> tuple[Request, Any]:
    """A command's options, and its configuration, checked."""
    kind = CONFIGS[name]
    request = Parser(name, str(command.__doc__), kind, positional=positional, run=run).parse(argv)
    _check_names(name, request.config, {entry.name for entry in options(kind)})
    config = configured(kind, request.values)
    if request.print_config:
        _print_yaml({entry.name: getattr(config, entry.name) for entry in options(kind)})
        raise SystemExit(DONE)
    config.check()
    return request, config


def _add_method_settings(parser: Parser, argv: list[str], hidden: bool = False) -> None:
    """Adds the options of the methods.

    Methods need torch, so they are looked at only where their options are used or one is named for its help.
    """
    wants_help = bool({"-h", "--help"} & set(argv))
    named = values_of("--method", argv)[-1:] if wants_help and not hidden else []
    if not named and (wants_help or not any(re.match(r"--[\w-]+\.\w", word) for word in argv)):
        return
    load_plugins_of(argv)
    from hkd.methods import methods

    for name in [n.removesuffix(PLUS_KD) for n in named] or methods:
        method = methods[name]
        if method.settings:
            title = f"settings of {name}"
            parser.add(method.Config, options(method.Config), group=title, prefix=f"{method.settings}.", hidden=hidden)


def _print_config(spec: RunSpec) -> int:
    _print_yaml({name: value for name, value in spec.to_flat().items() if name not in RECORDED})
    return DONE


def _print_yaml(values: Mapping[str, Any]) -> None:
    import yaml

    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")


def _print_result(result: Any) -> int:
    if not is_first_process():
        return DONE
    from hkd.models.weights import read_about

    summary = result.summary
    if result.skipped:
        print(f"{result.run} is finished; --fresh starts over")
    for top1 in summary.get("teachers_top1") or [summary["teacher_top1"]] if "teacher_top1" in summary else ():
        print(f"teacher:    top-1 {top1:.2f} %")
    classes = read_about(result.weights).get("num_classes", TOP + 1)
    top5 = f", top-5 {summary['top5_last']:.2f} %" if classes > TOP else ""
    best = f"(best top-1 {summary['top1_best']:.2f} % in epoch {summary['best_epoch']})"
    print(f"last epoch: top-1 {summary['top1_last']:.2f} %{top5}   {best}")
    print(f"weights: {result.weights}")
    return DONE
