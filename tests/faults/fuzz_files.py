"""Changes valid files and requests a little, at random, and reads them: only a RequestError of one line may come back.

    python -m tests.faults.fuzz_files [SECONDS] [SEED] [TARGET]

Each finding is written into ``build/fuzz``, its files and its traceback, once for each place in the code. Where
``fuzz_loaders`` looks for new paths through a single reader's bytes, this looks at whole folders and their values.
"""

import contextlib
import io
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hkd
from tests.faults.fuzz_targets import TARGETS, Target
from tests.faults.mutations import Files

SLOW_SECONDS = 10
GREEDY_KILOBYTES = 2**20


MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""A disk would be written to for most of the time."""


class TooSlow(BaseException):
    pass


def _too_slow(*_: object) -> None:
    raise TooSlow(f"more than {SLOW_SECONDS} s")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def written(files: Files, folder: Path) -> Path:
    for name, data in files.items():
        with contextlib.suppress(OSError, ValueError):  # a name that no disk takes, or one below a file
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


def attempt(target: Target, files: Files) -> str:
    """What went wrong when the files were read, a word and a traceback; empty if nothing did."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.alarm(SLOW_SECONDS)
    try:
        with quiet(), tempfile.TemporaryDirectory(dir=MEMORY) as name:
            target.read(written(files, Path(name)))
    except hkd.RequestError as error:
        if not str(error).isprintable() or len(str(error)) > 6000:
            return f"message\n{traceback.format_exc()}\nmore than one short line: {str(error)[:2000]!r}"
    except (Exception, TooSlow) as error:
        return f"{type(error).__name__}\n{traceback.format_exc()}"
    finally:
        signal.alarm(0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"memory\n{grown:,} kB" if grown > GREEDY_KILOBYTES else ""


def place(problem: str) -> str:
    """Where it arose, to tell findings apart."""
    lines = [line.strip() for line in problem.splitlines() if line.strip().startswith("File ")]
    ours = [line for line in lines if "/hkd/" in line] or lines
    return f"{problem.splitlines()[0]}, {(ours or [''])[-1]}"


def fuzz(
    seconds: float, seed: int, names: list[str], findings: Path | None = None
) -> tuple[Counter[str], dict[str, str]]:
    """Each target in turn, for as long as there is time.

    Returns:
        How many inputs each has read, and what was found, by its place.
    """
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_slow)
    counts: Counter[str] = Counter()
    found: dict[str, str] = {}
    good = {}
    for name in names:
        with quiet(), tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            good[name] = TARGETS[name].good(Path(folder))
        for files in good[name]:
            assert not (problem := attempt(TARGETS[name], files)), f"{name}: {problem}"
    spent: Counter[str] = Counter()
    until = time.monotonic() + seconds
    while (now := time.monotonic()) < until:
        name = min(names, key=spent.__getitem__)
        choice = random.Random(f"{seed} {name} {counts[name]}")
        files = TARGETS[name].change(choice.choice(good[name]), choice)
        problem = attempt(TARGETS[name], files)
        if problem and (where := f"{name}: {place(problem)}") not in found:
            found[where] = problem
            print(f"FOUND {where}", flush=True)
            if findings is not None:
                keep(files, problem, findings / f"{name.replace(' ', '-')}-{len(found)}")
        counts[name] += 1
        spent[name] += time.monotonic() - now
    return counts, found


def keep(files: Files, problem: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    written(files, folder / "files")
    (folder / "traceback.txt").write_text(problem)


def main(arguments: list[str]) -> int:
    seconds, seed, *names = [*arguments, *("600", "0")[len(arguments) :]]
    counts, found = fuzz(float(seconds), int(seed), names or list(TARGETS), Path("build/fuzz"))
    print("\n".join(f"{counts[name]:>9,}  {name}" for name in counts))
    print(f"{counts.total():>9,}  in all; {len(found)} findings")
    return min(len(found), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
