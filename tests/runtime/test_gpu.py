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
