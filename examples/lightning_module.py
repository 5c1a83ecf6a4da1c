"""The same training with Lightning: pip install lightning; python examples/lightning_module.py"""

import lightning
import torch
from own_loop import Indexed, digits, fit
from torch.utils.data import DataLoader

import hkd


class Distillation(lightning.LightningModule):
    """Any distiller. Its checkpoints hold the student, the method and its memory banks, and not the teacher."""

    def __init__(self, distiller, lr=0.05):
        super().__init__()
        self.distiller, self.lr = distiller, lr

    def on_train_epoch_start(self):
        first = self.distiller.first_epoch  # an initialisation counts as epochs of Lightning's trainer
        self.distiller.set_epoch(first + self.current_epoch, first + self.trainer.max_epochs)

    def training_step(self, batch, _):
        out = self.distiller(*batch)
        self.log_dict({"loss": out.loss, **out.terms})
        return out.loss

    def validation_step(self, batch, _):
        image, label, *_ = batch
        hits = self.distiller(image, label).logits.argmax(dim=1) == label
        self.log("top1", 100 * hits.float().mean(), prog_bar=True, batch_size=len(label))

    def configure_optimizers(self):
        return torch.optim.SGD(self.distiller.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)


def main(epochs=4):
    lightning.seed_everything(0)
    train_set, test_set = digits()
    teacher, student = hkd.create_model("resnet20", 10), hkd.create_model("resnet8", 10)
    fit(hkd.Distiller(teacher), train_set, epochs)
    distiller = hkd.Distiller(
        student, teacher, method="hkd", kd_weight=1.0, image_size=16,
        num_samples=len(train_set), labels=train_set.tensors[1],
    )  # fmt: skip
    loaders = (
        DataLoader(Indexed(train_set), 64, shuffle=True, drop_last=True),
        DataLoader(test_set, 128),
    )
    # Several processes: strategy=DDPStrategy(broadcast_buffers=False, find_unused_parameters=not
    # distiller.trains_all_parameters), so that the banks, equal in all of them, are not sent again in each step.
    trainer = lightning.Trainer(
        max_epochs=epochs - distiller.first_epoch, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(Distillation(distiller), *loaders)
    return trainer


if __name__ == "__main__":
    main()
