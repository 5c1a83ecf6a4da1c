"""Batch norms of frozen networks, put into convolutions."""

import copy

import pytest
import torch
from torch import Tensor, nn

import hkd
from hkd.models.fold import fold_batch_norms


def trained_looking(model: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics that are not those of a new network."""
    random = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
            module.weight.data.uniform_(0.5, 1, generator=random)
            module.bias.data.normal_(0, 0.1, generator=random)
    return model.eval().requires_grad_(False)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", [*(n for n in hkd.list_models() if ":" not in n), "torchvision:resnet18"])
def test_all_outputs_stay_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = trained_looking(hkd.create_model(name, 7))
    image = torch.randn(3, 3, 64, 64)
    before, count = model(image), norms(model)
    folded = fold_batch_norms(model, 32)
    after = model(image)
    assert norms(model) == count - folded
    assert folded == count or name.startswith("wrn"), "a pre-activation network adds what its norms read"
    assert folded > 0
    for one, other in zip(
        (before.logits, before.embedding, *before.features, *before.preactivations),
        (after.logits, after.embedding, *after.features, *after.preactivations),
        strict=True,
    ):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


class Odd(nn.Module):
    """A map that a norm and an addition read, and a convolution that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.twice, self.after = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.once, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = (x + self.norm(x)).relu()
        x = self.after(self.twice(self.twice(x))).relu()
        x = self.last(self.once(x)).relu()
        return self.head(x.mean(dim=(2, 3)))


def test_what_something_else_reads_is_left_alone() -> None:
    torch.manual_seed(0)
    own = trained_looking(Odd())
    model, image = hkd.wrap_model(own, image_size=16), torch.randn(2, 3, 16, 16)
    before = model(image).logits
    assert fold_batch_norms(model, 16) == 1
    assert isinstance(own.norm, nn.BatchNorm2d) and isinstance(own.after, nn.BatchNorm2d)
    torch.testing.assert_close(model(image).logits, before, rtol=1e-4, atol=1e-5)


def test_a_caller_s_teacher_is_not_changed(tmp_path) -> None:
    teacher = trained_looking(Odd())
    before = copy.deepcopy(teacher.state_dict())
    hkd.distill(
        hkd.DistillConfig(
            run=str(tmp_path / "run"), epochs=1, limit_train=8, device="cpu", method="kd", tensorboard=False,
            batch_size=16,
        ),
        teacher=(holder := nn.Sequential(teacher, nn.Linear(4, 10))),
    )  # fmt: skip
    assert norms(holder) == 3
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
