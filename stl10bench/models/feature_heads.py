"""Classifiers of a frozen backbone's features that are fitted, not trained in steps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

UNIFORM = 0.01  # of a vote's probabilities: without it a class without a vote has an infinite loss


def power_normalise(features: Tensor, power: float) -> Tensor:
    """float32 (N, F): each value to `power` with its sign kept, then each row to length 1.

    Power and L2 normalisation of Perronnin, Sanchez and Mensink (2010), "Improving the Fisher
    kernel for large-scale image classification", section 3: 0.5 evens out features of which few
    are large; 1 leaves the lengths alone to be normalised.
    """
    features = features.float()
    if power != 1:
        features = features.sign() * features.abs().pow(power)
    return F.normalize(features, dim=1)


class ProbeHead(nn.Module):
    """Features (N, ...) -> logits (N, C): `power_normalise`, then one linear layer, in float32."""

    def __init__(self, features: int, num_classes: int, *, power: float) -> None:
        super().__init__()
        self.power = power
        self.linear = nn.Linear(features, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, ...), which are flattened."""
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.linear(power_normalise(features.flatten(1), self.power))
        return logits


class KnnHead(nn.Module):
    """Features (N, ...) -> log-probabilities (N, C): the weighted vote of the nearest images.

    Wu et al. (2018), "Unsupervised feature learning via non-parametric instance discrimination",
    section 3.4: the k images of the bank with the highest cosine similarity s vote for their class,
    each with the weight exp(s / temperature). The shares of the votes are mixed with UNIFORM.
    """

    def __init__(self, bank: Tensor, labels: Tensor, num_classes: int, k: int, temperature: float):
        super().__init__()
        self.k, self.temperature, self.num_classes = k, temperature, num_classes
        self.bank: Tensor
        self.labels: Tensor
        self.register_buffer("bank", bank)  # float32 (M, F), rows of length 1
        self.register_buffer("labels", labels)  # int64 (M,)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, ...), which are flattened."""
        with torch.autocast(features.device.type, enabled=False):
            similarity = power_normalise(features.flatten(1), 1) @ self.bank.T
            nearest, rows = similarity.topk(min(self.k, len(self.bank)), dim=1)
            # Against the nearest: the same shares, and neither overflow nor only zeros.
            votes = ((nearest - nearest[:, :1]) / self.temperature).exp()
            shares = torch.einsum("nk,nkc->nc", votes, self._shares(rows).to(votes))
            shares = shares / shares.sum(1, keepdim=True)
            return (UNIFORM / self.num_classes + (1 - UNIFORM) * shares).log()

    def _shares(self, rows: Tensor) -> Tensor:
        """What the images `rows` (N, k) of the bank vote for: (N, k, C)."""
        return F.one_hot(self.labels[rows], self.num_classes)


class SpreadHead(KnnHead):
    """A KnnHead whose images, labelled or not, vote for the classes that were spread to them."""

    def __init__(self, bank: Tensor, spread: Tensor, k: int, temperature: float) -> None:
        super().__init__(bank, spread.argmax(1), spread.shape[1], k, temperature)
        self.spread: Tensor
        self.register_buffer("spread", spread)  # float32 (M, C), rows sum to 1

    def _shares(self, rows: Tensor) -> Tensor:
        return self.spread[rows]
