"""The two networks in PyTorch the way people train MNIST: ``python benchmarks/baselines/torch_script.py``.

``DataLoader``, torchvision's transforms, eager execution, ``nn.Dropout``, and the running loss and accuracy
read at every step, as the published notebooks of these networks do.
"""

import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

EPOCHS = {"net10040": 20, "net9954": 19}
BATCH = 128
LEARNING_RATE, MOMENTUM = 0.01, 0.9


def conv_block(channels: int, filters: int, kernel: int, padding: int) -> nn.Sequential:
    """A block of net10040."""
    return nn.Sequential(
        nn.Conv2d(channels, filters, kernel, padding=padding, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(),
        nn.Dropout(0.05),
    )


class Net10040(nn.Module):
    """10,040 parameters, no biases in convolutions."""

    def __init__(self):
        super().__init__()
        self.block1 = conv_block(1, 8, 3, padding=1)
        self.block2 = conv_block(8, 16, 3, padding=1)
        self.block3 = conv_block(16, 16, 3, padding=1)
        self.pool1 = nn.MaxPool2d(2)
        self.block4 = conv_block(16, 8, 1, padding=0)
        self.block5 = conv_block(8, 16, 3, padding=1)
        self.block6 = conv_block(16, 16, 3, padding=1)
        self.pool2 = nn.MaxPool2d(2)
        self.block7 = conv_block(16, 8, 1, padding=0)
        self.block8 = conv_block(8, 16, 3, padding=0)
        self.conv9 = nn.Conv2d(16, 10, 3, bias=False)
        self.gap = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        x = self.pool1(self.block3(self.block2(self.block1(x))))
        x = self.pool2(self.block6(self.block5(self.block4(x))))
        x = self.conv9(self.block8(self.block7(x)))
        return self.gap(x).flatten(1)


class Net9954(nn.Module):
    """9,954 parameters, batch norm after ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 8, 1)
        self.conv4, self.norm4 = nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)
        self.conv5, self.norm5 = nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)
        self.conv6 = nn.Conv2d(16, 32, 3)
        self.conv7 = nn.Conv2d(32, 10, 1)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.3)
        self.gap = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        x = self.norm1(functional.relu(self.conv1(x)))
        x = self.norm2(functional.relu(self.conv2(x)))
        x = self.dropout(self.pool(self.conv3(x)))
        x = self.norm4(functional.relu(self.conv4(x)))
        x = self.norm5(functional.relu(self.conv5(x)))
        x = self.dropout(self.pool(x))
        return self.gap(self.conv7(self.conv6(x))).flatten(1)


NETWORKS = {"net10040": Net10040, "net9954": Net9954}


def make_loader(root: str, train: bool, device: str, batch: int = BATCH) -> DataLoader:
    """MNIST in shuffled batches; on a GPU with worker processes and pinned memory."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    dataset = datasets.MNIST(root, train=train, transform=transform, download=True)
    on_gpu = {"num_workers": 4, "pin_memory": True, "persistent_workers": True} if device == "cuda" else {}
    return DataLoader(dataset, batch_size=batch, shuffle=train, **on_gpu)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]], device: str
) -> tuple[float, float]:
    """Train on batches; returns mean loss and accuracy."""
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


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: str) -> float:
    """Accuracy (0 to 1)."""
    model.eval()
    correct, seen = 0, 0
    with torch.no_grad():
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            correct += (model(images).argmax(1) == labels).sum().item()
            seen += len(labels)
    return correct / seen


def make_model(network: str, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network and its optimizer."""
    model = NETWORKS[network]().to(device)
    return model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def main(network: str = "net10040", root: str = "data") -> None:
    """Train and print."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, optimizer = make_model(network, device)
    train_loader = make_loader(root, train=True, device=device)
    test_loader = make_loader(root, train=False, device=device)
    for epoch in range(1, EPOCHS[network] + 1):
        loss, accuracy = train(model, optimizer, train_loader, device)
        test_accuracy = evaluate(model, test_loader, device)
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {accuracy:.2%}, test accuracy {test_accuracy:.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
