"""The SVD residual of Effort (arXiv:2411.15633): all singular directions of a weight but the last few are frozen.

    W = U S V^T = U_p S_p V_p^T + U_r S_r V_r^T        p: the principal directions, r: the last `rank` ones
    W' = U_p S_p V_p^T + U' S' V'^T                    only U', S', V' are trained, from U_r, S_r, V_r

It is trained as a LoRA of rank 2 r on the untouched W: W' = W + [U' S' - U_r S_r, U_r S_r] [V'^T; V'^T - V_r^T].
A saved one therefore is an ordinary LoRA, which peft loads and merges without an SVD that another machine would
round differently. The differences stand in the factors, in fp32: of U' S' V'^T and U_r S_r V_r^T themselves, rounded
to bf16 and then subtracted, hardly a digit would be left. And they are what is trained (dU, dS, dV, zero at the
start), so that weight decay pulls U', S' and V' to where they began, not to zero; `train_change` does so for norms.

The frozen part keeps its bits, but nothing keeps U' orthogonal to U_p: the penalty of the paper is left out. For a
square W and rank 1, U_p leaves one direction free, so the penalty fixes U' and V' and leaves only the size S' to
training. On the embedded world (rank 1, q k v out, 2 epochs) it held |cos(U', U_r)| at 1.000 and validation at 0.654;
without it 0.43 and 0.815. peft's own OSF (0.19 to 0.21) projects gradients to the same end, which AdamW, scaling every
entry by itself, does not respect.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adapt.errors import Refusal


class Right(nn.Module):
    """dV (r, in) -> [V_r + dV; dV] (2 r, in, ...), the weight of a LoRA's A."""

    def __init__(self, v: Tensor, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("v", v)

    def forward(self, dv: Tensor) -> Tensor:
        return torch.cat([self.v + dv, dv]).reshape(self.shape)

    def right_inverse(self, _: Tensor) -> Tensor:
        """What is trained, at its start."""
        return torch.zeros_like(self.v)


class Left(nn.Module):
    """dU (out, r), dS (r,) -> [U' S' - U_r S_r, U_r S_r] (out, 2 r, ...), the weight of a LoRA's B."""

    def __init__(self, u: Tensor, s: Tensor, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("u", u)
        self.register_buffer("s", s)

    def forward(self, du: Tensor, ds: Tensor) -> Tensor:
        change = du * (self.s + ds) + self.u * ds
        return torch.cat([change, self.u * self.s], dim=1).reshape(self.shape)

    def right_inverse(self, _: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(self.u), torch.zeros_like(self.s)


class Moved(nn.Module):
    """dW -> W + dW, a tensor by its change from where it began."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start)

    def forward(self, change: Tensor) -> Tensor:
        return self.start + change

    def right_inverse(self, _: Tensor) -> Tensor:
        return torch.zeros_like(self.start)


def train_change(layer: nn.Module) -> None:
    """Train weight and bias of a layer by their changes: weight decay pulls them to where they began, not to zero."""
    for name in ("weight", "bias"):
        if (tensor := getattr(layer, name, None)) is not None:
            parametrize.register_parametrization(layer, name, Moved(tensor.detach().clone()))


def settle(model: nn.Module) -> None:
    """Make plain tensors of all that `train_change` trains by its change."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def train_residual(layer: nn.Module, name: str, rank: int) -> None:
    """Turn a fresh peft LoRA layer of rank 2 `rank` into the residual of its weight (a 1 x 1 kernel is a matrix)."""
    weight = layer.get_base_layer().weight.detach().flatten(1).float()
    if rank >= min(weight.shape):
        raise Refusal(f"--rank {rank}: {name} is {tuple(weight.shape)}, and --update svd keeps a direction or more")
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    # LAPACK's are column by column, and for a single column `contiguous` would leave them so
    parts = u[:, -rank:], s[-rank:], vt[-rank:]
    u, s, vt = (part.clone(memory_format=torch.contiguous_format) for part in parts)
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    parametrize.register_parametrization(a, "weight", Right(vt, a.weight.shape))
    parametrize.register_parametrization(b, "weight", Left(u, s, b.weight.shape))


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as ordinary adapters have it: the factors A and B, and weights of norms, themselves."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            inner = f"{name}.parametrizations."
            state = {key: value for key, value in state.items() if not key.startswith(inner)}
            state |= {f"{name}.{tensor}": getattr(module, tensor).detach() for tensor in module.parametrizations}
    return state
