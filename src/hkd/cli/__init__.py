"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence

import hkd
from hkd.cli.streams import lenient_streams
from hkd.errors import RequestError, Stopped, TrainingError, unknown
from hkd.options import shown
from hkd.outside import printable
from hkd.runtime.parent import end_with_parent

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
LONGEST_LINE = 100_000
"""Characters of a message, which may hold names from a stranger's files."""
OVERVIEW = {
    "train": "train one network with cross-entropy: a teacher, or the student alone",
    "distill": "distil a student from a teacher; with no options: digits, resnet20 -> resnet8, HKD+KD",
    "evaluate": "top-1 and top-5 of a run folder or a checkpoint on a data set",
    "predict": "the classes of image files, folders and zip archives, as CSV: file, rank, class, probability",
    "compare": "several methods between the same networks, over several trials, with the table of what they gain",
    "sweep": "how results depend on one field: several values, methods and trials, with a plot; or a search",
    "transfer": "a linear classifier on frozen networks' features, on other data: how far what was learnt carries",
    "topology": "teacher's and students' embeddings of test images side by side, and numbers for how alike they are",
    "report": "one self-contained HTML page from run folders",
    "export": "a trained network as ONNX, torch.export and safetensors, checked against the original",
    "cache": "what a teacher says of every view of every image, computed once; --list, --prune look after tables",
    "list": "what there is: models, methods, datasets, recipes or checkpoints that others publish",
}
"""The commands with a sentence each, known here so that help need not import them."""
IN_SEVERAL_PROCESSES = ("train", "distill", "evaluate", "cache")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0 when done, 1 when it failed, 2 when the request was wrong, 130 or 143 when stopped."""
    with lenient_streams():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if arguments is None else arguments)
    argv = argv[1:] if argv[:1] == ["--"] else argv  # launchers need it before options of the same name as their own
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return DONE
    if argv[0] == "--version":
        print(f"hkd {hkd.__version__}")
        return DONE
    end_with_parent()
    try:
        from hkd.cli.commands import COMMANDS

        if argv[0] not in COMMANDS:
            raise unknown("command", argv[0], COMMANDS)
        if processes() > 1 and argv[0] not in IN_SEVERAL_PROCESSES:
            raise RequestError(f"processes: {argv[0]} uses one process, and {processes()} were started")
        return COMMANDS[argv[0]](argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        status, line = explain(error)
        print(line if is_first_process() else f"process {os.environ['RANK']}: {line}", file=sys.stderr)
        return status


def explain(error: BaseException) -> tuple[int, str]:
    """The exit status of an error, and the line that says what went wrong."""
    match error:
        case RequestError():
            return WRONG_REQUEST, f"hkd: {printable(error, LONGEST_LINE)}"
        case OSError(errno=errno.ENAMETOOLONG):  # wherever a path of a request is first used
            return WRONG_REQUEST, f"hkd: {printable(error.filename)} is longer than the name of a file may be"
        case TrainingError():
            return FAILED, f"hkd: failed: {error}"
        case Stopped():
            return error.status, f"hkd: {error}"
        case KeyboardInterrupt():
            return INTERRUPTED, "\nhkd: interrupted; the same command continues a run from its last checkpoint"
    return FAILED, f"hkd: failed: {type(error).__name__}: {' '.join(str(error).split())}; --debug shows where"


def processes() -> int:
    """How many processes a launcher started together.

    Raises:
        RequestError: a variable by which launchers say so is no number, or out of its range.
    """
    count = _from_launcher("WORLD_SIZE", 1, 1, 2**31)
    for name in ("RANK", "LOCAL_RANK"):
        _from_launcher(name, 0, 0, count)
    return count


def _from_launcher(name: str, default: int, least: int, above: int) -> int:
    """A number that a launcher puts into the environment."""
    value = os.environ.get(name, str(default))
    number = int(value) if re.fullmatch(r"[0-9]{1,10}", value) else -1
    if not least <= number < above:
        raise RequestError(f"{name}: expected a number from {least} to {above - 1}; got {shown(value)}")
    return number


def is_first_process() -> bool:
    """Of several processes (torchrun sets the rank) the first one prints."""
    rank = os.environ.get("RANK", "0")
    return rank == "0" or re.fullmatch(r"[0-9]{1,10}", rank) is None


def _overview() -> str:
    lines = [
        "usage: hkd COMMAND [options]",
        "",
        "Distil a large image classifier into a small one.",
        "",
        *(f"  {name:<10} {sentence}" for name, sentence in OVERVIEW.items()),
        "",
        "`hkd COMMAND --help` shows the options of a command, `hkd --version` the version.",
        "--debug shows where an unexpected error arose.",
    ]
    return "\n".join(lines)
