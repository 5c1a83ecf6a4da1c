"""The same training with Hugging Face's Trainer: pip install transformers; python examples/hf_trainer.py"""

import torch
from own_loop import Indexed, digits, fit
from torch.utils.data import default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

import hkd


class DistillationTrainer(Trainer):
    """Trains a distiller. Its checkpoints hold the student, the method and its memory banks, and not the teacher."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(**inputs)
        return (out.loss, {"logits": out.logits}) if return_outputs else out.loss


class Progress(TrainerCallback):
    """Says to the distiller which epoch it is. An initialisation counts as epochs of the Trainer."""

    def on_epoch_begin(self, args, state, control, model, **_):
        first = model.first_epoch
        model.set_epoch(first + int(state.epoch), first + int(args.num_train_epochs))


def collate(rows):
    """(image, label, index) as the arguments of a distiller."""
    return dict(zip(("image", "label", "index"), default_collate(rows), strict=True))


def accuracy(predictions):
    hits = predictions.predictions.argmax(axis=1) == predictions.label_ids
    return {"top1": 100 * hits.mean().item()}


def make_trainer(distiller, train_set, test_set, batch_size=64, **arguments):
    """The Trainer of a distiller, with the optimiser that the other examples have."""
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return DistillationTrainer(
        distiller,
        TrainingArguments(
            per_device_train_batch_size=batch_size, dataloader_drop_last=True, max_grad_norm=0, label_names=["label"],
            ddp_broadcast_buffers=False, ddp_find_unused_parameters=not distiller.trains_all_parameters, **arguments,
        ),
        data_collator=collate,
        train_dataset=Indexed(train_set),
        eval_dataset=Indexed(test_set),
        compute_metrics=accuracy,
        callbacks=[Progress()],
        optimizers=(optimizer, constant),
    )  # fmt: skip


def main(epochs=4):
    torch.manual_seed(0)
    train_set, test_set = digits()
    teacher, student = hkd.create_model("resnet20", 10), hkd.create_model("resnet8", 10)
    fit(hkd.Distiller(teacher), train_set, epochs)
    distiller = hkd.Distiller(
        student, teacher, method="hkd", kd_weight=1.0, image_size=16,
        num_samples=len(train_set), labels=train_set.tensors[1],
    )  # fmt: skip
    trainer = make_trainer(
        distiller, train_set, test_set, num_train_epochs=epochs - distiller.first_epoch, use_cpu=True,
        output_dir="runs/hf", report_to="none",
    )  # fmt: skip
    trainer.train()
    print(trainer.evaluate())


if __name__ == "__main__":
    main()
