"""Optimisers for the demo's training: Muon for the matrices inside the layers, AdamW for the rest."""

from __future__ import annotations

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made orthogonal (K. Jordan, 2024, "Muon"); for weight matrices of layers."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.02):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
            for p in (p for p in group["params"] if p.grad is not None):
                alike.setdefault(tuple(p.shape), []).append(p)
            for (rows, cols), params in alike.items():
                updates = []
                for p in params:
                    kept = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    kept.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(kept, group["momentum"]))
                update = orthogonal(torch.stack(updates)) * (0.2 * max(rows, cols) ** 0.5)
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"]).add_(u, alpha=-group["lr"])


def orthogonal(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest orthogonal matrices to a stack of matrices, roughly: a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def optimizers(model: torch.nn.Module, dense: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers; AdamW for embeddings, norms, biases, kernels and the dense heads.

    A group's ``share`` scales the learning rate. All pixels of a patch are alike, so that a full-sized step of each of
    its 768 weights adds up, and soon drowns the position embeddings: the patch embedding gets a tenth.
    """
    inner: list[torch.nn.Parameter] = []
    outer, patch = list(dense.parameters()), list[torch.nn.Parameter]()
    for name, p in model.named_parameters():
        layered = p.ndim == 2 and "embed" not in name and "lm_head" not in name
        (patch if "patch_embedding.weight" in name else inner if layered else outer).append(p)
    groups = [{"params": outer, "share": 1.0}, {"params": patch, "share": 0.1}]
    return [Muon(inner, lr), torch.optim.AdamW(groups, lr, betas=(0.9, 0.95), weight_decay=0.0)]
