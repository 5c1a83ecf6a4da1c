"""Any classifier as a :class:`Model`: timm's, torchvision's, or anybody's ``nn.Module``."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hkd.errors import RequestError, unknown
from hkd.models.about import LONGEST_NAME
from hkd.models.base import Model, evaluating
from hkd.models.hub import check_download, from_hub
from hkd.models.names import local_folder
from hkd.options import shown
from hkd.outside import printable
from hkd.registry import search_working_directory
from hkd.types import IMAGENET_MEAN, IMAGENET_STD, ModelOutput


class WrappedModel(Model):
    """A module whose classifier and stages are watched while it runs. Made by :func:`wrap_model`.

    The embedding is what enters the classifier. Preactivations are not known of a foreign network. ``pooled`` names the
    module that makes the map whose average is the embedding; empty where there is none, and so no :meth:`classify`.
    """

    def __init__(
        self, module: nn.Module, classifier: str, stages: Sequence[str], name: str, image_size: int,
        channels_last: Iterable[str] = (), pooled: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.module = module
        self.name = name
        self.image_size = image_size
        self.classifier = classifier
        self.stages = tuple(stages)
        self.pooled = pooled
        # What the hooks see; None unless this wrapper is running, so that no activation outlives its step.
        self._seen: dict[str, Tensor] | None = None
        self._channels_last: frozenset[str] = frozenset(channels_last)
        module.get_submodule(classifier).register_forward_pre_hook(self._see_embedding)
        for stage in {*self.stages, *filter(None, [pooled])}:
            module.get_submodule(stage).register_forward_hook(partial(self._see_stage, stage))

    def _see_embedding(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._seen is not None:
            self._seen["embedding"] = inputs[0]

    def _see_stage(self, stage: str, _: nn.Module, __: Any, output: Any) -> None:
        if self._seen is not None:
            self._seen[stage] = output.permute(0, 3, 1, 2) if stage in self._channels_last else output

    def forward(self, image: Tensor) -> ModelOutput:
        seen = self._seen = {}
        try:
            logits = self.module(image)
        finally:
            self._seen = None
        embedding = seen["embedding"]
        if embedding.ndim == 4:  # the classifier is a 1x1 convolution
            embedding = embedding.mean(dim=(2, 3))
        pooled = seen[self.pooled] if self.pooled else None
        return ModelOutput(logits, embedding, tuple(seen[stage] for stage in self.stages), pooled=pooled)

    def classify(self, vectors: Tensor) -> Tensor:
        if not self.pooled:
            raise RequestError(
                f"model: expected a linear layer that classifies the average of a map which a module returns; got "
                f"{self.name}, which has a norm, a dropout or another step before its {self.classifier}"
            )
        layer: Any = self.module.get_submodule(self.classifier)
        return F.linear(vectors, layer.weight.flatten(1), layer.bias)  # a 1x1 convolution's weights are a matrix, too


def wrap_model(
    module: nn.Module,
    *,
    classifier: str | None = None,
    stages: Sequence[str] | None = None,
    name: str | None = None,
    image_size: int | None = None,
) -> Model:
    """Makes any image classifier a :class:`Model`.

    One probe image runs through the module in evaluation mode. The classifier is the linear layer (or 1x1 convolution)
    that makes the module's output; the stages are, for each resolution, the last feature map of that resolution.

    Args:
        module: takes (B, 3, H, W) images, returns (B, C) logits.
        classifier: dotted name of the classifying layer, where it cannot be found.
        stages: dotted names of the modules whose outputs are the stage maps, stem first, where others are wanted.
        name: what to call the model; the class name if not given.
        image_size: side of the probe image in pixels; 224, then 32 are tried if not given.

    Raises:
        RequestError: the module does not run on the probe, does not return (B, C) logits, or its classifier cannot be
            found.

    Example::

        model = hkd.wrap_model(MyNet(num_classes=10), image_size=64)
    """
    if isinstance(module, Model):
        return module
    if not isinstance(module, nn.Module):
        raise RequestError(f"model: expected an nn.Module; got {shown(module)}, which hkd.create_model may build")
    name = name or type(module).__name__
    probe = _probe(module, name, [image_size] if image_size else [224, 32])
    if classifier is None:
        classifier = probe.classifier(name)
    elif classifier not in dict(module.named_modules()):
        raise unknown("classifier", classifier, (n for n, _ in module.named_modules() if n))
    stages = probe.stages() if stages is None else stages
    pooled = probe.pooled(classifier, module.get_submodule(classifier))
    return WrappedModel(module, classifier, stages, name, probe.image_size, probe.channels_last(), pooled)


@dataclass
class _Probe:
    """What one image makes each part of a module say, in the order in which the parts finish."""

    image_size: int
    logits: Tensor
    calls: list[tuple[str, nn.Module, Any]]
    inputs: dict[str, Any]
    dropped: list[Tensor]

    def pooled(self, classifier: str, layer: nn.Module) -> str:
        """The part whose map is averaged and then classified by nothing but the linear layer; empty if there is none.

        A map of one cell is no map: what made it may stand behind the pooling.
        """
        path: str
        embedding = self.inputs.get(classifier)
        if not isinstance(embedding, Tensor) or not isinstance(layer, nn.Linear | nn.Conv2d):
            return ""
        embedding = embedding.mean(dim=(2, 3)) if embedding.ndim == 4 else embedding
        weight = layer.weight.flatten(1)
        if embedding.ndim != 2 or weight.shape[1] != embedding.shape[1]:
            return ""
        dropped = any(_alike(vector.flatten(1), embedding) for vector in self.dropped)
        if dropped or not _alike(F.linear(embedding, weight, layer.bias), self.logits):
            return ""
        runs = Counter(path for path, _, _ in self.calls)
        for path, _, output in reversed(self.calls):
            if runs[path] == 1 and isinstance(output, Tensor) and output.ndim == 4 and len(output) == 1:
                map_ = _channels_first(output)
                if map_.shape[2:].numel() > 1 and _alike(map_.mean(dim=(2, 3)), embedding):
                    return path
        return ""

    def classifier(self, name: str) -> str:
        path: str
        for path, part, output in reversed(self.calls):
            is_linear = isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1))
            if is_linear and output.numel() == self.logits.numel() and torch.equal(output.flatten(1), self.logits):
                return path
        raise RequestError(
            f"classifier: the output of {name}, shape {tuple(self.logits.shape)}, is not what one of its linear layers "
            "returns; name the layer that classifies: wrap_model(..., classifier='head.fc')"
        )

    def channels_last(self) -> list[str]:
        """The parts whose maps are (B, h, w, c), as those of window transformers."""
        maps = ((path, out) for path, _, out in self.calls if isinstance(out, Tensor) and out.ndim == 4)
        return [path for path, out in maps if _channels_first(out) is not out]

    def stages(self) -> list[str]:
        """The last map of each resolution, of parts that run once, while the resolution falls to 1x1."""
        runs = Counter(path for path, _, _ in self.calls)
        last: dict[int, str] = {}
        for path, _, output in self.calls:
            # The probe is one image; windows and the like have more.
            if runs[path] == 1 and isinstance(output, Tensor) and output.ndim == 4 and len(output) == 1:
                _, _, height, width = _channels_first(output).shape
                area = height * width
                last.pop(area, None)  # to stand behind what finished before
                last[area] = path
        falling: list[int] = []
        for area in last:
            if area > 1 and (not falling or area < falling[-1]):
                falling.append(area)
        return [last[area] for area in falling]


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same up to rounding."""
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-4 * b.abs().max())


class _Dropouts(TorchFunctionMode):
    """Keeps what enters each dropout, of modules and functions alike; in evaluation mode it leaves no other trace."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "dropout" in getattr(function, "__name__", ""):
            rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            entering = args[0] if args else kwargs.get("input")
            if rate and isinstance(entering, Tensor):
                self.inputs.append(entering)
        return function(*args, **kwargs)


def _channels_first(output: Tensor) -> Tensor:
    """A map as (B, c, h, w). The square probe has square maps: where the last two axes differ, channels are last."""
    _, first, second, third = output.shape
    return output.permute(0, 3, 1, 2) if first == second != third else output


@torch.no_grad()
def _probe(module: nn.Module, name: str, sizes: Sequence[int]) -> _Probe:
    like = next(module.parameters(), torch.zeros(()))
    calls: list[tuple[str, nn.Module, Any]] = []
    inputs: dict[str, Any] = {}

    def watch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, given: Any, output: Any) -> None:
            calls.append((path, part, output))
            inputs[path] = given[0] if given else None

        return hook

    hooks = [part.register_forward_hook(watch(path)) for path, part in module.named_modules() if path]
    reason: Exception | None = None
    try:
        for size in sizes:
            calls.clear()
            # Noise, so that two layers' outputs cannot be mistaken for one another.
            noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
            try:
                with evaluating(module), _Dropouts() as dropouts:
                    out = module(noise.to(like.device, like.dtype))
            except Exception as error:  # whatever a foreign module raises is its answer to this size
                reason = error
                continue
            if not isinstance(out, Tensor) or out.ndim != 2:
                raise RequestError(
                    f"model: {name} returns {_describe(out)}; expected one tensor of logits, (batch, classes)"
                )
            return _Probe(size, out, list(calls), inputs, dropouts.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    tried = " and ".join(f"{size}x{size}" for size in sizes)
    why = " ".join(str(reason).split())
    raise RequestError(f"model: {name} does not run on a {tried} image ({why}); pass image_size") from reason


def _describe(out: Any) -> str:
    return f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"


def from_timm(name: str, num_classes: int, pretrained: bool, image_size: int | None = None) -> Model:
    """A network of PyTorch Image Models. Pretrained weights are downloaded by timm.

    Args:
        name: of timm, or ``local-dir:PATH`` or ``hf-hub:NAME`` that a person typed: a folder with ``config.json`` and
            weights, as timm saves them, here or on the Hugging Face hub.
        num_classes: C.
        pretrained: start from the weights.
        image_size: side of its images in pixels; a network of a fixed size that does not take them is built for it.
    """
    import timm

    folder = local_folder(f"timm:{name}")
    if folder is not None and not os.path.isfile(folder / "config.json"):
        raise RequestError(f"model: expected a folder with the config.json of timm; got {printable(folder, 4096)}")
    if ":" in name and len(name) > LONGEST_NAME - len("timm:"):  # a file of weights could not name it
        raise RequestError(f"model: expected a name of less than {LONGEST_NAME} characters; got {len(name)}")
    if ":" not in name and not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    try:
        with _timm_weights(name, pretrained):
            sized = _built_for(name, num_classes, image_size)
            module: Any = timm.create_model(name, num_classes=num_classes, pretrained=pretrained, **sized)
    except RequestError:
        raise
    except Exception as error:  # an unknown tag, no weights
        raise RequestError(f"model: timm cannot build {name} ({' '.join(str(error).split())})") from error
    about = module.pretrained_cfg
    model = wrap_model(module, name=f"timm:{name}", image_size=sized.get("img_size", about["input_size"][-1]))
    model.library_normalisation = (tuple(about["mean"]), tuple(about["std"]))
    if pretrained:
        model.normalisation = model.library_normalisation
        model.pretrained_classifier = about["num_classes"] == num_classes
    return model


def _built_for(name: str, num_classes: int, image_size: int | None) -> dict[str, Any]:
    """The argument that builds a network of a fixed size for another one; none where it takes the images as it is."""
    import timm

    if image_size is None:
        return {}
    with torch.random.fork_rng(devices=[]):  # what is built here is thrown away
        module: Any = timm.create_model(name, num_classes=num_classes)
        about = module.pretrained_cfg
        if not about.get("fixed_input_size") or about["input_size"][-1] == image_size:
            return {}
        if _runs(module, image_size):
            return {}
        try:
            module = timm.create_model(name, num_classes=num_classes, img_size=image_size)
        except Exception:  # an architecture without that argument, or of another grid
            return {}
        return {"img_size": image_size} if _runs(module, image_size) else {}


@torch.no_grad()
def _runs(module: nn.Module, image_size: int) -> bool:
    """Whether a network takes images of a size."""
    try:
        with evaluating(module):
            module(torch.zeros(1, 3, image_size, image_size))
    except Exception:  # whatever it says of a size that it does not take
        return False
    return True


WITHOUT_NETWORK = "copy their file here and name it with --teacher-weights or --student-weights"


def _timm_weights(name: str, pretrained: bool) -> AbstractContextManager[None]:
    """Around timm's building of a network, which may download its weights."""
    from timm.models import get_pretrained_cfg

    if name.startswith("hf-hub:"):
        return from_hub(f"timm:{name}", "copy its folder here and name it timm:local-dir:FOLDER")
    about = get_pretrained_cfg(name) if pretrained and ":" not in name else None
    if about is None or not (about.hf_hub_id or about.url):
        return nullcontext()
    if about.hf_hub_id:
        return from_hub(f"timm:{name}", WITHOUT_NETWORK)
    url: Any = about.url
    check_download(f"timm:{name}", url if isinstance(url, str) else url[0], WITHOUT_NETWORK)  # or with a file's name
    return nullcontext()


def in_libraries(name: str) -> list[str]:
    """Under which names timm and torchvision know a network."""
    import timm
    import torchvision

    found = [f"timm:{name}"] if timm.is_model(name) else []
    known = torchvision.models.list_models(module=torchvision.models)
    return found + ([f"torchvision:{name}"] if name in known else [])


def from_torchvision(name: str, num_classes: int, pretrained: bool) -> Model:
    """A classification network of torchvision. Pretrained weights are those of ImageNet, downloaded by torchvision."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown("model", name, known)
    arguments: dict[str, Any] = {"weights": "DEFAULT"} if pretrained else {"weights": None, "num_classes": num_classes}
    if name in ("googlenet", "inception_v3") and not pretrained:
        arguments |= {"aux_logits": False, "init_weights": True}  # a second head returns several logits
    if pretrained:
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        check_download(f"torchvision:{name}", url, WITHOUT_NETWORK)
    try:
        module = torchvision.models.get_model(name, **arguments)
    except (OSError, ValueError) as error:  # no network, no weights
        raise RequestError(f"model: torchvision cannot build {name} ({' '.join(str(error).split())})") from error
    model = wrap_model(module, name=f"torchvision:{name}")
    assert isinstance(model, WrappedModel)
    model.library_normalisation = (IMAGENET_MEAN, IMAGENET_STD)
    if pretrained:
        model.normalisation = model.library_normalisation
        model.pretrained_classifier = model.info.num_classes == num_classes
        if not model.pretrained_classifier:
            return _with_new_classifier(model, num_classes)
    return model


def _with_new_classifier(model: WrappedModel, num_classes: int) -> Model:
    """A pretrained network with an untrained classifier of another number of classes."""
    old = model.module.get_submodule(model.classifier)
    bias = old.bias is not None
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, num_classes, 1, bias=bias)
    model.module.set_submodule(model.classifier, new)
    fresh = WrappedModel(
        model.module, model.classifier, model.stages, model.name, model.image_size, model._channels_last, model.pooled
    )
    fresh.normalisation = model.normalisation
    return fresh


def from_factory(path: str, num_classes: int) -> Model:
    """A network built by ``package.module:callable``, called with the number of classes.

    The path is one that a person typed: importing runs the module. It is looked for in the working directory first, as
    ``python -m`` does.
    """
    module_name, _, attribute = path.partition(":")
    search_working_directory()
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # importing runs the asker's own code
        raise RequestError(f"model: cannot import {path!r} ({type(error).__name__}: {error})") from error
    try:
        module = factory(num_classes)
    except Exception as error:
        raise RequestError(f"model: {path}({num_classes}) fails ({type(error).__name__}: {error})") from error
    if not isinstance(module, nn.Module):
        raise RequestError(f"model: {path}({num_classes}) returned a {type(module).__name__}, not an nn.Module")
    wrapped = wrap_model(module)
    wrapped.name = path
    return wrapped
