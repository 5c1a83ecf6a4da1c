"""What only a GPU can show."""

from pathlib import Path

import pytest
import torch

import hkd

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_a_gpu(tmp_path: Path, precision: str, compiled: bool) -> None:
    asked = hkd.DistillConfig(
        run=str(tmp_path / "run"), epochs=3, student="resnet8", teacher="resnet8", device="cuda", precision=precision,
        compile=compiled, limit_train=50,
    )  # fmt: skip
    result = hkd.distill(asked)
    assert result.summary["device"].startswith("cuda")
    assert result.summary["top1_best"] > 10


def test_a_gradient_is_clipped_at_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 the loss is scaled by thousands; what the optimiser sees has the norm that was asked for."""
    norms, step = [], torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *args: object, **kwargs: object) -> object:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    asked = hkd.TrainConfig(
        run=str(tmp_path / "run"), epochs=3, student="resnet8", device="cuda", precision="fp16", limit_train=50,
        clip_grad=0.5, accumulate=2, ema=0.9,
    )  # fmt: skip
    hkd.train(asked)
    assert 0.1 < max(norms) < 0.51
