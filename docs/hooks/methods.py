"""The pages of the methods, from what the code says of each: its docstring, settings, weights and needs.

What a step costs stands in docs/performance.md, our accuracies in docs/results.md, the published ones in
hkd.report.published; they are read from there, so that no number is written twice.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from docstrings import ROLE, table_of, to_markdown
from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import hkd
from hkd.methods import Method, methods
from hkd.methods.base import NEEDS
from hkd.methods.of_teachers import READ
from hkd.report.published import CRD, HKD, SETTINGS, TIAN, ZHOU

READS = {
    "logits": "logits",
    "embedding": "embedding",
    "features": "stage maps",
    "preactivations": "stage maps before their ReLU",
    "images": "outputs for images that the method changes",
    "strong": "outputs for a strongly augmented view",
    "classifier": "classifier",
}
"""Of the teacher, by :data:`hkd.methods.base.NEEDS`."""
assert set(READS) == NEEDS

OVERVIEW = r"""---
hide: [toc]
---

# Methods

`hkd distill --method NAME` minimises

$$
\gamma\,\mathrm{{CE}}(l_s, y)
+ \alpha\,T^2\,\mathrm{{KL}}\big(\mathrm{{softmax}}(l_t / T) \,\|\, \mathrm{{softmax}}(l_s / T)\big)
+ \beta \sum \text{{terms of the method}}
$$

with the weights of the table unless `--ce-weight`, `--kd-weight` and `--method-weight` say otherwise.
`--method NAME+kd` adds the KD term with α = 1. *step* is the time of a training step with the teacher over that of the
cross-entropy alone, from [Performance](../performance.md#the-step): {setting}.

{table}
"""
COSTS = [
    "| step | median ms | over the CE step (quartiles) | ms with a table of the teacher's outputs | over the CE step |",
    "|---|---|---|---|---|",
]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages into the navigation, behind their overview; ends the build where a docstring is missing."""
    public = {name: getattr(hkd, name) for name in hkd.__all__}
    if undocumented := [name for name, value in {**public, **own_methods()}.items() if not documented(value)]:
        raise PluginError(f"without a docstring: {', '.join(undocumented)}")
    part = next(entry["Methods"] for entry in config.nav or [] if "Methods" in entry)
    part += [{name: f"methods/{name}.md"} for name in own_methods()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Makes the pages."""
    docs = Path(config.docs_dir)
    costs, results = Costs.read(docs / "performance.md"), (docs / "results.md").read_text()
    pages = {name: page(name, method, costs, results) for name, method in own_methods().items()}
    for name, text in {"index": overview(costs), **pages}.items():
        files.append(File.generated(config, f"methods/{name}.md", content=text))
    return files


def documented(value: Any) -> bool:
    """Whether somebody has written a docstring: a dataclass without one has its signature there."""
    return bool(value.__doc__) and not value.__doc__.startswith(f"{value.__name__}(")


def own_methods() -> dict[str, type[Method[Any]]]:
    """The methods of this package: other distributions may have registered theirs."""
    return {name: methods[name] for name in sorted(methods) if methods[name].__module__.startswith("hkd.")}


def page(name: str, method: type[Method[Any]], costs: Costs, results: str) -> str:
    """The page of a method, in Markdown."""
    module = sys.modules[method.__module__]
    doc = inspect.getdoc(method) or ""
    reference, _, body = doc.partition("\n\n")
    helpers = [h for h in dict.fromkeys(ROLE.findall(doc)) if "." not in h and h in vars(module)]
    parts = [
        f"# {name}",
        f"[](){{ #{method.__module__}.{method.__name__} }}",
        f"**{title(method)}**",
        to_markdown(reference.replace("\n", " ")),
        to_markdown(body, lambda role: f"{module.__name__}.{role}" if role in helpers else role),
        "```\n" + f"hkd distill --method {name}\n" + "```",
        "## What it needs",
        *needs(method),
        "## Settings",
        settings(name, method),
        "## What a step costs",
        costs.of(name),
        "## Accuracies",
        "\n\n".join(ours(name, results)) or "[Results](../results.md) has no table with this method.",
        published(name) or "No published accuracy of it is kept beside ours.",
        *(["## Parts"] if helpers else []),
        *(f"::: {module.__name__}.{helper}\n    options: {{heading_level: 3}}" for helper in helpers),
        f"Its code is [{Path(module.__file__ or '').name}](../../src/hkd/methods/{Path(module.__file__ or '').name}).",
    ]
    return "\n\n".join(parts) + "\n"


def overview(costs: Costs) -> str:
    """The table of all methods."""
    rows = ["| method | published as | reads the teacher's | γ | α | β | step |", "|---|---|---|---|---|---|---|"]
    for name, method in own_methods().items():
        reference = (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " ")
        weights = method.default_weights(method.Config())
        reads = ", ".join(READS[need] for need in READS if need in method.needs)
        numbers = " | ".join(f"{weight:g}" for weight in weights)
        rows.append(f"| [{name}]({name}.md) | {reference} | {reads} | {numbers} | {costs.relative(name)} |")
    return OVERVIEW.format(setting=costs.setting, table="\n".join(rows))


def title(method: type[Method[Any]]) -> str:
    """What the method is called: the first line of its file."""
    return (inspect.getdoc(sys.modules[method.__module__]) or "").partition("\n")[0]


def needs(method: type[Method[Any]]) -> Iterator[str]:
    """What it reads and what follows from that."""
    reads = [READS[need] for need in READS if need in method.needs]
    yield f"Of the teacher: {', '.join(reads)}."
    facts = []
    if "images" in method.needs:
        facts.append("It runs both networks on further images in each step.")
    if "strong" in method.needs:
        facts.append("It runs both networks on a second, strongly augmented view of each image.")
    if method.remembers_classes or hasattr(method.Config, "num_negatives"):
        facts.append("It keeps a memory of all training images, so it has to know which one each image is.")
    if hasattr(method.Config, "init_epochs"):
        facts.append(f"It has an initialisation of {method.Config().init_epochs} epochs before the training.")
    if method.follows_progress:
        facts.append("Its terms change over the training: a loop of your own calls `Distiller.set_epoch`.")
    facts.append(f"It {'works' if several_teachers(method) else 'does not work'} with several teachers.")
    facts.append(f"It {'takes' if method.takes_mixed else 'does not take'} mixed images (`--mixup`, `--cutmix`).")
    yield "\n".join(f"- {fact}" for fact in facts)


def several_teachers(method: type[Method[Any]]) -> bool:
    """Whether it learns from more than one."""
    return method.needs <= READ and not hasattr(method.Config, "init_epochs")


def settings(name: str, method: type[Method[Any]]) -> str:
    """Default weights, and the settings with their defaults."""
    weights = method.default_weights(method.Config())
    line = f"Default weights: γ = {weights.ce:g} of CE, α = {weights.kd:g} of KD, β = {weights.method:g} of its terms."
    if not method.Config.__dataclass_fields__:
        return f"{line} It has no settings."
    prefix = f"--{method.settings}." if method.settings else f"--{name}-"  # --kd-temperature is an option of every run
    return f"{line}\n\n{table_of(method.Config, lambda field: prefix + field.replace('_', '-'))}"


class Costs(NamedTuple):
    """The table of step times of all methods in docs/performance.md."""

    setting: str
    rows: dict[str, str]

    @classmethod
    def read(cls, file: Path) -> Costs:
        """Of the blocks of the document that with most methods."""
        blocks = re.findall(r"^```\n(.*?)^```", file.read_text(), flags=re.DOTALL | re.MULTILINE)
        steps = [block for block in blocks if "over the CE step" in block]
        block = max(steps, key=lambda text: sum(f"\n{name} " in text for name in own_methods()))
        lines = block.splitlines()
        return cls(lines[0], {line.split()[0]: line for line in lines[1:] if re.match(r"\S+ +[\d.]+ +[\d.]+x", line)})

    def relative(self, name: str) -> str:
        """Times the step of the cross-entropy, or nothing where it was not measured."""
        return f"{float(self.rows[name].split()[2].removesuffix('x')):.2f}x" if name in self.rows else ""

    def of(self, name: str) -> str:
        """The lines of a method."""
        lines = [line for label, line in self.rows.items() if of_method(label, name)]
        if not lines:
            return "Not measured."
        table = list(COSTS)
        for line in lines:
            label, ms, ratio, *rest = re.split(r" {2,}", line.strip())
            table.append(f"| `{label}` | {ms} | {ratio} | {rest[0] if rest else ''} | {rest[1] if rest else ''} |")
        return f"{self.setting} ([Performance](../performance.md#the-step)).\n\n" + "\n".join(table)


def of_method(label: str, name: str) -> bool:
    """Whether a line of a table is of a method: NAME, NAME+kd, NAME(setting=value,...)."""
    return re.fullmatch(rf"{re.escape(name)}(\(.*\))?(\+kd)?", label.strip("`* ")) is not None


def ours(name: str, results: str) -> Iterator[str]:
    """The rows of the tables of docs/results.md that are of a method, below a link to their section, and what the
    section says of the method in a paragraph that begins with its name."""
    plain = re.sub(r"^```.*?^```|^<!--.*?-->\n", "", results, flags=re.DOTALL | re.MULTILINE)
    plain = re.sub(r"\]\((?=#)", "](results.md", plain)
    plain = re.sub(r"\]\((?![a-z]+:)", "](../", plain)  # seen from the page of a method
    for section in re.split(r"^#+ ", plain, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        blocks = text.split("\n\n")
        tables = [block.strip().splitlines() for block in blocks if re.match(r"\s*\| *methods? *\|", block)]
        found = [[*table[:2], *(row for row in table[2:] if of_method(row.split("|")[1], name))] for table in tables]
        if shown := ["\n".join(table) for table in found if len(table) > 2]:
            notes = [block.strip() for block in blocks if block.strip().startswith(f"`{name}` ")]
            yield "\n\n".join([f"[{heading}](../results.md#{slugify(heading, '-')})", *shown, *notes])


def published(name: str) -> str:
    """The accuracies that papers report of a method, on CIFAR-100."""
    rows = []
    for (teacher, student), numbers in ZHOU.items():
        for label, (mean, deviation) in numbers.items():
            if of_method(label, name):
                rows.append(f"| {teacher} → {student} | `{label}` | {mean:.2f} ± {deviation:.2f} | {HKD} |")
    for (teacher, student), scores in TIAN.items():
        if name in scores:
            rows.append(
                f"| {teacher} → {student} | `{name}` | {scores[name]:.2f} | {CRD.partition(',')[0]}, RepDistiller |"
            )
    if not rows:
        return ""
    note = f" They were measured with `{name}{SETTINGS[name]}`." if name in SETTINGS else ""
    head = ["| teacher → student | line | top-1 | source |", "|---|---|---|---|"]
    return f"Published on CIFAR-100, 240 epochs, in percent.{note}\n\n" + "\n".join([*head, *rows])
