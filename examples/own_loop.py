"""A student learns from a teacher in a plain PyTorch loop, on scikit-learn's digits: python examples/own_loop.py"""

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import hkd


class Indexed(Dataset):
    """Any data set of (image, label), with each image's position behind them: memories recognise an image by it."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return *self.data[index], index


def fit(distiller, train_set, epochs, batch_size=64):
    """Trains a distiller. A method with an initialisation has it first, in epochs below 0."""
    loader = DataLoader(Indexed(train_set), batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(distiller.first_epoch, epochs):
        distiller.train()
        distiller.set_epoch(epoch, epochs)
        for image, label, index in loader:
            out = distiller(image, label, index)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def top1(distiller, test_set):
    """The student's accuracy in percent. In evaluation mode a distiller needs no index."""
    distiller.eval()
    image, label = test_set.tensors
    return 100 * (distiller(image, label).logits.argmax(dim=1) == label).float().mean().item()


def digits():
    """1437 images for training and 360 for testing, 16 x 16 pixels of three equal channels."""
    data = load_digits()
    image = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, scale_factor=2)
    image, label = image.repeat(1, 3, 1, 1), torch.tensor(data.target)
    return TensorDataset(image[:1437], label[:1437]), TensorDataset(image[1437:], label[1437:])


def main(epochs=4):
    torch.manual_seed(0)
    train_set, test_set = digits()
    teacher, student = hkd.create_model("resnet20", 10), hkd.create_model("resnet8", 10)

    labels_alone = hkd.Distiller(teacher)  # nobody teaches the teacher
    fit(labels_alone, train_set, epochs)
    print(f"teacher {top1(labels_alone, test_set):.1f} %")

    distiller = hkd.Distiller(
        student, teacher, method="hkd", kd_weight=1.0, image_size=16,
        num_samples=len(train_set), labels=train_set.tensors[1],
    )  # fmt: skip
    fit(distiller, train_set, epochs)
    print(f"student {top1(distiller, test_set):.1f} %")
    # student is trained in place; distiller.state_dict() holds it, the method and its memory banks


if __name__ == "__main__":
    main()
