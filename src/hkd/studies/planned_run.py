"""One run of a study: its specification, its folder, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hkd.runtime.run_folder import RunFolder, RunState
from hkd.spec import RunSpec

Identity = tuple[str, int]
"""A specification's key, and the seed."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        spec: its specification as the command line says it, with absolute paths.
        resolved: the same with nothing open.
        title: what it is, in words.
        teacher: the training of its teacher, where that is part of the study.
    """

    spec: RunSpec
    resolved: RunSpec
    title: str
    teacher: PlannedRun | None = None

    @cached_property
    def identity(self) -> Identity:
        """Two planned runs of one identity are one run."""
        return self.resolved.key(), self.resolved.seed

    @cached_property
    def folder(self) -> RunFolder:
        return RunFolder(self.spec.run)

    @property
    def state(self) -> RunState:
        """As the folder says; a run whose teacher failed has failed, until the teacher is there."""
        state = self.folder.state
        if state in (RunState.MISSING, RunState.BEGUN) and self._lacks_teacher:
            return RunState.FAILED
        return state

    @property
    def has_ended(self) -> bool:
        """Whether it has a result, or will get none."""
        return self.state in (RunState.FINISHED, RunState.FAILED, RunState.PRUNED)

    @property
    def failure(self) -> str | None:
        """Why it failed or was pruned, in words; None if it did not."""
        if self.state not in (RunState.FAILED, RunState.PRUNED):
            return None
        if (failure := self.folder.failure) is not None:
            return str(failure.get("message"))
        return f"its teacher failed: {self.spec.teacher.checkpoint if self.spec.teacher else ''}"

    @property
    def _lacks_teacher(self) -> bool:
        return self.teacher is not None and self.teacher.state is RunState.FAILED
