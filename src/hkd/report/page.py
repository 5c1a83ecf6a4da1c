"""The command ``hkd report``: one HTML page from run folders."""

from __future__ import annotations

from pathlib import Path

import hkd
from hkd.config import ReportConfig
from hkd.errors import RequestError
from hkd.files import write_text
from hkd.outside import check_installed
from hkd.report.collect import Group, find_finished, grouped
from hkd.report.pairs import comparisons


def write_report(config: ReportConfig) -> Path:
    """Writes one HTML page with everything that some run folders hold. It loads nothing from elsewhere.

    Returns:
        The file.

    Raises:
        RequestError: there is no finished run, a file of one is corrupt, the page cannot be written, or what draws
            it is not installed.
    """
    check_installed("report", "report", "jinja2", "plotly")
    from hkd.report import sections
    from hkd.report.layout import render
    from hkd.report.samples import disagreements

    config.check()
    runs, folders = find_finished(config.runs)
    groups = grouped(runs)
    labels = {group.key: group.label for group in groups}
    parts = [
        sections.networks(groups),
        sections.comparison(comparisons(groups)),
        sections.curves(groups),
        sections.sweeps(folders),
        sections.searches(folders),
        sections.topologies(folders, labels),
        sections.transfers(folders, labels),
        sections.classes(groups),
        disagreements(groups, config.data_root),
        sections.provenance(groups),
        sections.reproduction(groups),
        sections.configuration(groups),
    ]
    page = render(config.title, _subtitle(groups), [section for section in parts if section is not None])
    output = Path(config.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, page)
    except OSError as error:
        raise RequestError(f"output: cannot write {output} ({error.strerror})") from error
    return output


def _subtitle(groups: list[Group]) -> str:
    datasets = ", ".join(sorted({group.spec.data.dataset for group in groups}))
    count = sum(len(group.runs) for group in groups)
    return f"{count} {'runs' if count > 1 else 'run'} on {datasets}; hkd {hkd.__version__}"
