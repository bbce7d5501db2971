"""The two networks in PyTorch the way people train MNIST.

``DataLoader``, torchvision's transforms, eager execution, ``nn.Dropout``, and the running loss and accuracy
read at every step, as the published notebooks of these networks do.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

LEARNING_RATE, MOMENTUM = 0.01, 0.9

Batches = Iterable[tuple[Tensor, Tensor]]  # images (N, 1, 28, 28), labels (N,)


def conv_block(channels: int, filters: int, kernel: int, padding: int) -> nn.Sequential:
    """A block of net10040."""
    conv = nn.Conv2d(channels, filters, kernel, padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(filters), nn.ReLU(), nn.Dropout(0.05))


def net10040() -> nn.Sequential:
    """10,040 parameters, no biases in convolutions."""
    return nn.Sequential(
        *(conv_block(1, 8, 3, 1), conv_block(8, 16, 3, 1), conv_block(16, 16, 3, 1), nn.MaxPool2d(2)),
        *(conv_block(16, 8, 1, 0), conv_block(8, 16, 3, 1), conv_block(16, 16, 3, 1), nn.MaxPool2d(2)),
        *(conv_block(16, 8, 1, 0), conv_block(8, 16, 3, 0), nn.Conv2d(16, 10, 3, bias=False)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def net9954() -> nn.Sequential:
    """9,954 parameters, batch norm after ReLU."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
        *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.BatchNorm2d(16)),
        *(nn.Conv2d(16, 8, 1), nn.MaxPool2d(2), nn.Dropout(0.3)),
        *(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.BatchNorm2d(16)),
        *(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.BatchNorm2d(16), nn.MaxPool2d(2), nn.Dropout(0.3)),
        *(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def make_loader(root: str, batch: int, device: str) -> DataLoader:
    """MNIST's training images in shuffled batches; on a GPU with worker processes and pinned memory."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    dataset = datasets.MNIST(root, train=True, transform=transform, download=True)
    on_gpu = {"num_workers": 4, "pin_memory": True, "persistent_workers": True} if device == "cuda" else {}
    return DataLoader(dataset, batch_size=batch, shuffle=True, **on_gpu)


def make_training(model: nn.Module, device: str) -> Callable[[Batches], tuple[float, float]]:
    """A function that trains on batches and returns mean loss and accuracy."""
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def train(batches: Batches) -> tuple[float, float]:
        model.train()
        total_loss, correct, seen = 0.0, 0, 0
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(images)
            loss = functional.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            seen += len(labels)
        return total_loss / seen, correct / seen

    return train
