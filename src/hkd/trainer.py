"""The training: one class, one straight loop. It knows no method, model or data set by name."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from hkd.data import Loader, make_loader
from hkd.data.open import Data, worker_count
from hkd.distiller import Distiller
from hkd.errors import DivergedError, RequestError, Stopped
from hkd.metrics import Evaluation, Sums, evaluate_model, hits, ranked
from hkd.models import Model
from hkd.models.fold import fold_batch_norms
from hkd.models.weights import weights_digest
from hkd.runtime.checkpoint import Checkpoint
from hkd.runtime.curves import Curves
from hkd.runtime.engine import Engine
from hkd.runtime.guard import Guard, NotFiniteError
from hkd.runtime.optimizers import forget, make_optimizer, moving_average
from hkd.runtime.progress import Progress
from hkd.runtime.run_folder import RunFolder
from hkd.runtime.stopping import StopAction, Stopping
from hkd.runtime.teacher_cache import CacheRequest, TeacherCache, cacheable, fits, summary_of, table_key
from hkd.spec import RunSpec
from hkd.trained import crop_of
from hkd.types import Batch

TEACHER_IS_MOST = 0.5
"""Of an epoch's time: from then on a run without a table says what one would save."""


class Trainer:
    """A run from where its folder left off to its last epoch.

    Args:
        spec: of the run, resolved.
        distiller: holds the student, the method and the teachers; all its parameters are trained.
        data: what to train and to evaluate on.
        engine: where to compute.
        folder: where to log, save, and continue from.

    Raises:
        RequestError: the run folder cannot be continued from.
    """

    def __init__(self, spec: RunSpec, distiller: Distiller, data: Data, engine: Engine, folder: RunFolder) -> None:
        self.spec, self.data, self.engine, self.folder = spec, data, engine, folder
        self.distiller = distiller
        scale = engine.share.processes if spec.optimisation.scale_with_processes else 1
        self.batch_size = spec.optimisation.batch_size * scale
        self.parts = spec.optimisation.accumulate  # of a batch; each is a step of the loop
        self.schedule = dataclasses.replace(spec.optimisation, lr=spec.optimisation.lr * scale)
        self.epochs, self.first_epoch = spec.optimisation.epochs, distiller.first_epoch
        self.loader, self.test_loader = self._loaders()
        self.teachers_top1: list[float] = []
        self._terms: tuple[str, ...] = ()  # the names of the last step's
        self._teacher_seconds = 0.0  # that the teachers took for all evaluation images, where they were measured
        self._counts = (0, 0)  # of the tables, at the start of the epoch
        self.teacher_caches: list[TeacherCache] = []
        teacher_digest = self._place_networks()
        self.teacher_digest = teacher_digest or None
        optimizer = make_optimizer(distiller, self.schedule, self.schedule.lr)
        decay = self.schedule.ema
        self.average = None if decay is None else moving_average(distiller.student, decay)
        self.prepared, self.optimizer = engine.prepare(distiller, optimizer, distiller.trains_all_parameters)
        origin = {"teacher_digest": teacher_digest, "images_a_step": str(self.batch_size)}
        self.checkpoint = Checkpoint(
            folder, distiller, self.optimizer, engine, origin, self.first_epoch,
            average=None if self.average is None else self.average.module,
        )  # fmt: skip
        self.state = self.checkpoint.resume()
        if spec.runtime.compile:
            for network in (distiller.student, *distiller.teachers):
                network.compile()
        self.guard = Guard(engine, distiller, spec.runtime.skip_bad_steps, self.state.skipped_steps)
        self._is_spoilt = False  # the step of the optimiser that is being made, by a part that was skipped
        self.stopping = Stopping(engine, spec.runtime.save_minutes)
        self.sums = Sums()
        self.evaluated: Evaluation | None = None
        self.progress, self.curves = self._progress()

    @property
    def kept(self) -> Model:
        """The network that is evaluated and saved: the student, or its moving average."""
        network: Model = self.distiller.student if self.average is None else self.average.module
        return network

    def _loaders(self) -> tuple[Loader, Loader]:
        """For training and for evaluation."""
        spec, device = self.spec, self.engine.device
        options: dict[str, Any] = {
            "workers": worker_count(spec.runtime.workers),
            "share": self.engine.share,
            "bad_images": spec.data.bad_images,
        }
        train = make_loader(
            self.data.train,
            self.batch_size // self.parts,
            device,
            train=True,
            flip=spec.data.flip,
            seed=spec.seed,
            views=spec.data.views or self.epochs,
            cache=spec.runtime.image_folder,
            cache_gb=spec.runtime.image_cache_gb,
            strong=self.distiller.needs_strong,
            balance=spec.data.balance == "sampler",
            unlabelled_share=None if spec.method is None else spec.method.unlabelled_share,
            augment=spec.data.augment,
            min_crop=spec.data.min_crop,
            mixup=spec.data.mixup,
            cutmix=spec.data.cutmix,
            **options,
        )
        if train.note and self.engine.is_main:
            print(train.note, file=sys.stderr, flush=True)
        return train, make_loader(self.data.test, max(256, self.batch_size), device, train=False, **options)

    def _place_networks(self) -> str:
        """Moves the networks to the device, opens the teachers, and returns the digests of their weights."""
        # The loaders' batches are channels-last; weights in the same order spare the convolutions a conversion.
        for network in (self.distiller.student, *self.distiller.teachers):
            network.to(self.engine.device).to(memory_format=torch.channels_last)
        digest = " ".join(map(weights_digest, self.distiller.teachers))
        if digest:
            self._open_teachers(self.distiller.teachers)
        return digest

    def _progress(self) -> tuple[Progress, Curves]:
        state, batches, writes = self.state, self.loader.batches, self.engine.is_main
        done = (state.epoch - self.first_epoch) * batches.images
        done += sum(batches.size_of(step) for step in range(state.step))
        title = f"{Path(self.spec.run).name} ({self.distiller.student.name})"
        total = (self.epochs - self.first_epoch) * batches.images
        curves = Curves(self.spec, self.folder, self.engine, self.first_epoch, state.epoch)
        split = "held out" if self.data.holdout else "test"
        return Progress(title, total, done, self.epochs, silent=not writes, split=split), curves

    def run(self) -> dict[str, Any]:
        """Trains to the last epoch.

        Returns:
            Accuracies of the last and the best epoch in percent, and what it took.

        Raises:
            DivergedError: the loss is NaN or infinite.
            Stopped: Ctrl-C or SIGTERM; the state has been saved.
        """
        with closing(self.progress), closing(self.curves), self.stopping:
            for epoch in range(self.state.epoch, self.epochs):
                if self._is_early():
                    break
                self._begin(epoch)
                started = time.perf_counter() - self.state.epoch_seconds
                try:
                    for step, batch in enumerate(self.loader.epoch(epoch, self.state.step), self.state.step + 1):
                        self.train_step(step, batch)
                        self._save_or_stop(step, started)
                    self.guard.check()
                    row = {"epoch": epoch + 1, "lr": self.lr_at(epoch), **self._means()}
                except NotFiniteError as error:
                    raise DivergedError(self._diverged(epoch, str(error))) from None
                self._finish(epoch, row, started)
        if self.evaluated is None:  # the last epoch was finished by an earlier start
            self.evaluated = evaluate_model(self.kept, self.test_loader, self.engine)
        return self._summary(self.evaluated)

    def _is_early(self) -> bool:
        """Whether the run stops before its last epoch, which is then said: the evaluation has long not been better."""
        patience, best = self.schedule.patience, self.state.best_epoch
        if patience is None or self.state.epoch - best < patience:
            return False
        if self.engine.is_main:
            print(
                f"stopped early, after epoch {self.state.epoch} of {self.epochs}: top-1 on the held-out images has not "
                f"been above {self.state.best_top1:.2f} % since epoch {best}; the last epoch is the result",
                file=sys.stderr,
                flush=True,
            )
        return True

    def train_step(self, step: int, batch: Batch) -> None:
        """One part of a batch, and behind the last one a step of the optimiser with the gradient of the whole batch.

        In one process nothing in it waits for the device. Where a part is skipped, the optimiser does not step.
        """
        first = (step - 1) // self.parts * self.parts
        sizes = [self.loader.batches.size_of(part) for part in range(first, min(first + self.parts, len(self.loader)))]
        is_last = step == first + len(sizes)
        self.guard.before_step()
        with nullcontext() if is_last else self.engine.alone(self.prepared):
            with self.engine.autocast():
                known = self.teacher_caches and not self.distiller.in_initialisation
                taught = [cache(batch) for cache in self.teacher_caches] if known else None
                out = self.prepared(batch, teacher=taught)
            if skipped := self.guard.skips(out):
                self._is_spoilt = True
            else:  # losses are means over images, so a part counts as many as it has
                share = sizes[step - 1 - first] / sum(sizes)
                self.engine.backward(out.loss if len(sizes) == 1 else out.loss * share)
        if is_last and self._is_spoilt:
            self.optimizer.zero_grad()
            self._is_spoilt = False
        elif is_last:
            self._optimise(step)
        if skipped:
            return
        self.guard.record(step, out)

        count, self._terms = len(batch.label), tuple(out.terms)
        with torch.no_grad():
            self.sums.add({name: count * value for name, value in {"loss": out.loss, **out.terms}.items()}, count)
            if out.logits is not None:
                labelled = (batch.label >= 0).sum()  # no prediction hits the label -1
                self.sums.add(hits(ranked(out.logits), batch.label) | {"labelled": labelled})

    def _optimise(self, step: int) -> None:
        """A step of the optimiser, and of the moving average, which begins with the training itself."""
        if self.schedule.clip_grad is not None:
            self.engine.clip(self.prepared, self.schedule.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None and not self.distiller.in_initialisation:
            done = self.state.epoch * self._steps(len(self.loader)) + self._steps(step)
            self.average.update(self.distiller.student, done + 1)

    def _steps(self, parts: int) -> int:
        """Of the optimiser, in so many parts of batches from the start of an epoch."""
        return -(-parts // self.parts)

    def _open_teachers(self, teachers: Sequence[Model]) -> None:
        """Folds each teacher, opens the tables of their outputs where they are asked for, and measures accuracies."""
        request = self._cache_request()
        keys = [] if request is None else [table_key(t, self.loader, request, self.data.image_size) for t in teachers]
        for teacher in teachers:
            fold_batch_norms(teacher, self.data.image_size)
        if request is not None and self.distiller.needs_teacher:
            reason = self.loader.unrepeated or cacheable(self.distiller)
            reason = reason or next(filter(None, (fits(k, self.loader, request) for k in keys)), "")
            if self.engine.all_reduce_max(bool(reason)):  # each machine has its own disk, and all do the same
                reason = reason or "it does not fit on another machine of this run"
            else:
                pairs = zip(keys, teachers, strict=True)
                self.teacher_caches = [TeacherCache(k, t, self.loader, self.engine, request) for k, t in pairs]
            if self.engine.is_main:
                lines = (
                    [f"teacher cache: not used, {reason}"] if reason else [c.describe() for c in self.teacher_caches]
                )
                print(*lines, sep="\n", file=sys.stderr, flush=True)
        caches = self.teacher_caches
        known: Sequence[TeacherCache | None] = caches or [None] * len(teachers)
        self.teachers_top1 = [self._accuracy_of(t, cache) for t, cache in zip(teachers, known, strict=True)]
        if caches and all(cache.is_complete for cache in caches) and self.distiller.initialisation is None:
            for cache in caches:
                cache.release_teacher()
            self.distiller.release_teachers()

    def _accuracy_of(self, teacher: Model, cache: TeacherCache | None) -> float:
        """A teacher's top-1, which its table may know."""
        images = self.data.test.fingerprint[:16]
        top1 = None if cache is None else cache.accuracy(images)
        lacking = self.engine.all_reduce_max(int(top1 is None))  # in each process, whatever its own disk has noted
        if top1 is None or lacking:
            started = time.perf_counter()
            top1 = evaluate_model(teacher, self.test_loader, self.engine).top1
            self._teacher_seconds += time.perf_counter() - started
        if self.engine.is_main:
            words = accuracy_words(teacher.name, top1, self.data.train.info.num_classes)
            print(words, file=sys.stderr, flush=True)
        if cache is not None:
            cache.note_accuracy(images, top1)
        return top1

    def _cache_request(self) -> CacheRequest | None:
        runtime = self.spec.runtime
        if runtime.teacher_cache == "off":
            return None
        beside = Path(self.spec.run).parent / "teacher-cache"
        folder = beside if runtime.teacher_cache == "auto" else Path(runtime.teacher_cache)
        return CacheRequest(folder, runtime.teacher_cache_gb, runtime.teacher_cache_dtype, runtime.precision)

    def _teacher_note(self, epoch: int, seconds: float) -> str:
        """For the line of an epoch that took so long: what the table gave, or, once, what a table would save."""
        if self.teacher_caches:
            hits, misses = (now - before for now, before in zip(self._table_counts(), self._counts, strict=True))
            return f"  teacher {100 * hits / max(1, hits + misses):.0f} % read"
        share = self._teacher_seconds / len(self.data.test) * self.loader.batches.images / seconds
        self._teacher_seconds = 0.0
        if share < TEACHER_IS_MOST or epoch + 1 == self.epochs or self.loader.unrepeated or cacheable(self.distiller):
            return ""
        return (
            f"\nthe teacher takes about {100 * min(share, 0.99):.0f} % of this time; with --teacher-cache auto its "
            "outputs are computed once for all epochs and runs"
        )

    def _table_counts(self) -> tuple[int, int]:
        """Images whose teachers' outputs were read and computed so far, in this process."""
        return sum(cache.hits for cache in self.teacher_caches), sum(cache.misses for cache in self.teacher_caches)

    def _sum_of(self, row: dict[str, Any]) -> str:
        """What an epoch's loss is the sum of, with weights: " = ce 1.90 + 3 x hkd 0.31"; empty for a single term.

        A method's terms are one, under its name.
        """
        method = "" if self.spec.method is None else self.spec.method.name
        used = self.distiller.parts({name: row[name] for name in self._terms}, method)
        if len(used) < 2:
            return ""
        return " = " + " + ".join(f"{_times(weight)}{name} {value:.2f}" for name, (weight, value) in used.items())

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch; those below 0 are of the method's initialisation."""
        stage = self.distiller.initialisation
        if stage is not None and epoch < 0:
            return stage.lr_at(epoch - self.first_epoch, self.schedule.lr)
        return self.schedule.lr_at(epoch)

    def _begin(self, epoch: int) -> None:
        if epoch == 0 and self.state.step == 0:  # the training does not inherit the momentum of an initialisation
            forget(self.optimizer)
            if self.average is not None:
                self.average.set(self.distiller.student)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(epoch)
        self.progress.begin(epoch + 1)
        self.prepared.train()
        self.distiller.set_epoch(epoch, self.epochs)
        self.guard.begin_epoch()
        self._counts = self._table_counts()
        self.sums = Sums(self.state.sums, self.engine)

    def _save_or_stop(self, step: int, started: float) -> None:
        """After each step, skipped or not: the progress, and what a signal or the clock demands."""
        self.progress.images(self.loader.batches.size_of(step - 1), lambda: self.sums.mean_here("loss"))
        if step % self.parts and step < len(self.loader):  # gradients of a step are no part of the state
            return
        action = self.stopping.action(self._steps(step))
        if action is StopAction.CONTINUE:
            return
        self.guard.check()
        state = self.state
        state.step, state.sums = step, self.sums.state(self.engine)
        state.epoch_seconds = time.perf_counter() - started
        saved = self._save()
        if action is StopAction.STOP:
            self._stop(saved)

    def _finish(self, epoch: int, row: dict[str, Any], started: float) -> None:
        """Evaluates, logs and saves.

        Args:
            row: what the training of the epoch gave.
            started: when it would have started, had it never been stopped.
        """
        state, images = self.state, self.loader.batches.images
        for network in dict.fromkeys((self.distiller.student, self.kept)):
            self.engine.average_buffers(network)
        seconds = time.perf_counter() - started
        row |= {"seconds": seconds, "images_per_second": images / seconds}
        if epoch >= 0 and (epoch + 1 == self.epochs or self.spec.runtime.evaluate == "every"):
            self.evaluated = evaluate_model(self.kept, self.test_loader, self.engine)
            row |= self.evaluated.row()
        if broken := [f"{name} {value}" for name, value in row.items() if not math.isfinite(value)]:
            raise DivergedError(self._diverged(epoch, ", ".join(broken)))

        state.epoch, state.step, state.sums, state.epoch_seconds = epoch + 1, 0, {}, 0.0
        state.rows.append(row)
        state.seconds += time.perf_counter() - started
        state.images += images
        if (top1 := row.get("test_top1", -math.inf)) > state.best_top1:
            state.best_top1, state.best_epoch = top1, epoch + 1
            self.folder.save_best(self.kept, **self.metadata(epoch + 1, top1))
        saved = self._save()
        self.curves.write(row)
        left = state.seconds / (state.epoch - self.first_epoch) * (self.epochs - state.epoch)
        note = self._teacher_note(epoch, images / row["images_per_second"])
        self.progress.epoch(row, state.best_top1, left, self._sum_of(row), note)
        if epoch + 1 < self.epochs and self.engine.all_reduce_max(int(self.stopping.signal is not None)):
            self._stop(saved)

    def metadata(self, epoch: int, top1: float) -> dict[str, Any]:
        """What is written beside the student's weights."""
        return metadata(self.data, epoch, top1)

    def _means(self) -> dict[str, float]:
        """The epoch's means of the loss and its terms, and top-1 in percent."""
        means = self.sums.means(self.engine)
        if not means:
            raise NotFiniteError("in every step")
        top1 = {"train_top1": 100 * means["top1"] / means["labelled"]} if means.get("labelled") else {}
        return {name: means[name] for name in means if name not in ("top1", "top5", "labelled")} | top1

    def _summary(self, last: Evaluation) -> dict[str, Any]:
        state = self.state
        teacher: dict[str, Any] = {"teacher_top1": self.teachers_top1[0]} if self.teachers_top1 else {}
        if len(self.teachers_top1) > 1:
            teacher["teachers_top1"] = self.teachers_top1
        if self.teacher_caches:
            teacher["teacher_cache"] = summary_of([cache.summary() for cache in self.teacher_caches])
        return {
            "top1_last": last.top1,
            "top1_best": max(state.best_top1, last.top1),
            "best_epoch": state.best_epoch,
            "top5_last": last.top5,
            "balanced_accuracy": last.balanced_accuracy,
            **teacher,
            "epochs": state.epoch,
            "seconds": state.seconds,
            "images_per_second": state.images / max(state.seconds, 1e-9),
            "skipped_steps": state.skipped_steps,
        }

    def _save(self) -> bool:
        """Returns whether it could."""
        self.state.skipped_steps = self.guard.skipped
        self.stopping.saved_now()
        return self.checkpoint.save(self.state)

    def _stop(self, saved: bool) -> None:
        state = self.state
        where = f"after step {state.step} of epoch {state.epoch + 1}" if state.step else f"after epoch {state.epoch}"
        then = "from there" if saved else "from the last checkpoint, since this could not be saved"
        raise Stopped(f"stopped {where}; the same command continues {then}", self.stopping.status)

    def _diverged(self, epoch: int, details: str) -> str:
        last = self.folder.last
        kept = f"the checkpoint before it is {last}" if last.is_file() else "there is no checkpoint before it"
        return (
            f"the loss is NaN or infinite in epoch {epoch + 1}, {details}; {kept}; start over with --fresh and a lower "
            "--lr, or skip such steps with --skip-bad-steps"
        )


def _times(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g} x "


def metadata(data: Data, epoch: int, top1: float) -> dict[str, Any]:
    """What is written beside the weights of a network that learnt from some data."""
    return {
        "classes": list(data.train.info.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "image_size": data.image_size,
        "crop": crop_of(data.test),
        "dataset": data.name,
        "epoch": epoch,
        "top1": top1,
    }


def accuracy_words(name: str, top1: float, classes: int) -> str:
    """A teacher's accuracy, with a warning where it hardly knows the classes: one that took them in another order.

    Args:
        name: of the teacher.
        top1: in percent.
        classes: C. Near chance is below twice chance, for few classes below a tenth of the way from chance to all.
    """
    chance = 1 / classes
    words = f"teacher {name}: top-1 {top1:.2f} % on the evaluation images"
    if top1 / 100 >= min(2 * chance, chance + 0.1 * (1 - chance)):
        return words
    return (
        f"{words}\nwarning: the teacher is near chance, {100 * chance:.2f} %: do its classes have the data's order, "
        "and was it trained on such images?"
    )


def check_shares(spec: RunSpec, data: Data, engine: Engine) -> None:
    """Raises :class:`RequestError` where the processes would not have equal work, of two images a step at least."""
    processes = engine.share.processes
    scale = processes if spec.optimisation.scale_with_processes else 1
    batch_size, parts = spec.optimisation.batch_size * scale, spec.optimisation.accumulate
    shares = processes * parts
    if processes > 1 and (batch_size % shares or batch_size < 2 * shares):
        times = f" {parts} times" if parts > 1 else ""
        raise RequestError(
            f"batch_size: {processes} processes share every batch{times} in equal parts of 2 images or more; "
            f"got {batch_size}"
        )
    for split in (data.train, data.test):
        if processes > 1 and len(split) < 2 * processes:
            raise RequestError(f"dataset: {data.name} has a split of {len(split)} images for {processes} processes")
