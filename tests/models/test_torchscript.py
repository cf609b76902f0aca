"""TorchScript read as data: what torch's own loader gives, and nothing that a file may do beside computing."""

import warnings

import pytest
import torch
from foreign_networks import cnn, rewrite, write_script
from torch import nn

from adapt.errors import Refusal
from adapt.models.towers.torchscript import TorchScript

NET = "container/{}.py"


class Branches(nn.Module):
    """Loops, lists, dicts, optional values, strings, shapes, a call with defaults, and a branch for training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.GELU()])
        self.scales = [0.5, 2.0]
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found: list[torch.Tensor] = []
        for scale in self.scales:
            y = (x - self.mean) * scale
            for layer in self.layers:
                y = layer(y)
            found.append(y[:, :, ::2].mean(dim=[2, 3]))
        total, k = torch.zeros_like(found[0]), 0
        while k < len(found) and k < 10:
            total = total + found[k] if k % 2 == 0 else total - found[k]
            k += 1
        if self.training:
            total = total + torch.rand_like(total)
        size: int | None = None
        if x.shape[0] > 100:
            size = x.shape[0] // 2
        if size is not None:
            total = total[:size]
        a, b = total.max(dim=1)
        return {"logit": self.summed(total), "other": a + b.to(torch.float32)}

    def summed(self, x: torch.Tensor, weights: tuple[float, float, float] = (1.0, -1.0, 0.5)) -> torch.Tensor:
        return (x * torch.tensor([weights[0], weights[1], weights[2]])).sum(1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv, self.norm = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48), nn.LayerNorm(16)
        self.position = nn.Parameter(torch.randn(1, 17, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([torch.zeros(x.shape[0], 1, 16, device=x.device), x], 1) + self.position
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        return nn.functional.normalize(y[:, 0], dim=-1)


def of_torch(file, pixels):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.jit.load(file)(pixels)


@pytest.mark.parametrize("how", ["traced", "scripted", "frozen"])
@pytest.mark.parametrize("make", [cnn, Attention])
def test_outputs_are_those_of_torch(tmp_path, make, how) -> None:
    file = write_script(make().eval(), tmp_path / "net.pt", how)
    pixels = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(TorchScript(file)(pixels), of_torch(file, pixels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["scripted", "frozen"])
def test_control_flow_is_that_of_torch(tmp_path, how) -> None:
    file = write_script(Branches().eval(), tmp_path / "net.pt", how)
    pixels = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(TorchScript(file)(pixels), of_torch(file, pixels), rtol=1e-5, atol=1e-6)


def test_it_moves_with_its_tensors(tmp_path) -> None:
    net = TorchScript(write_script(Attention().eval(), tmp_path / "net.pt", "traced")).to(torch.float64)
    assert net(torch.randn(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float64


# -- what is refused -------------------------------------------------------------------------------------------------


class One(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


LINE = "return torch.relu(x)"
ASKED = {  # what stands in place of the line -> what the refusal names
    'torch.save(x, "{}")\n    return x': "torch.save",
    'ops.aten.save(x, "{}")\n    return x': "ops.aten.save",
    '(x).save("{}")\n    return x': "x.save",
    '_0 = torch.save\n    _1 = _0(x, "{}")\n    return x': "torch.save",
    'if False:\n      torch.save(x, "{}")\n    else:\n      pass\n    return x': "torch.save",
    'return torch.from_file("{}", False, 4)': "torch.from_file",
    "return ops.aten.from_file": "ops.aten.from_file",
    "return ops.prim.PythonOp(x)": "ops.prim.PythonOp",
    "return ops.prim.fork(x)": "ops.prim.fork",
    "return ops.quantized.linear(x)": "ops.quantized.linear",
    "return ops.image.read_file(x)": "ops.image.read_file",
    "torch.manual_seed(1)\n    return x": "torch.manual_seed",
    "return torch.set_(x, x)": "torch.set_",
    "return torch.resize_(x, [9])": "torch.resize_",
    "return torch.as_strided(x, [9], [9], 9)": "torch.as_strided",
    'return open("{}")': "open",
    "return eval(x)": "eval",
    "return __import__(x)": "__import__",
    "return [y for y in x]": "[y for y in x]",
    "return (lambda: x)()": "lambda",
    "import os\n    return x": "import os",
    "self.y = x\n    return x": "self.y = x",
    "x[0] = x\n    return x": "x[0] = x",
    "return torch.relu(*x)": "torch.relu(*x)",
    "return x ** x": "x ** x",
    "with torch.no_grad():\n      return x": "with torch.no_grad()",
    "return range(5)": "range",
    "return __torch__.os.system(x)": "__torch__.os.system",
    "global x\n    return x": "global x",
    "return b'x'": "b'x'",
}


@pytest.mark.parametrize("text", ASKED)
def test_what_is_no_tensor_arithmetic_is_refused_by_name_and_not_run(tmp_path, text) -> None:
    plain, made = write_script(One().eval(), tmp_path / "plain.pt"), tmp_path / "made"
    file = rewrite(plain, tmp_path / "net.pt", {"test_torchscript.py": (LINE, text.format(made))})
    with pytest.raises(Refusal) as refusal:
        TorchScript(file)
    assert ASKED[text] in str(refusal.value) and "\n" not in str(refusal.value)
    assert not made.exists()


def test_torch_itself_would_have_written_that_file(tmp_path) -> None:
    plain, made = write_script(One().eval(), tmp_path / "plain.pt"), tmp_path / "made"
    text = f'torch.save(x, "{made}")\n    return x'
    of_torch(rewrite(plain, tmp_path / "net.pt", {"test_torchscript.py": (LINE, text)}), torch.zeros(1))
    assert made.exists()


class Remembers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> int:
        return 3

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        self.training = True


class Grows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.view(-1).add_(1.0)
        return x * self.seen


RUN = {  # what can only be found as it runs
    "while True:\n      _0 = torch.neg(x)\n    return x": "does not end",
    "for i in range(9999999999999):\n      pass\n    return x": "does not end",
    "return torch.rand_like(x)": "random numbers",
    "return torch.dropout(x, 0.5, True)": "training mode",
    "return (self).forward(x, )": "calls in one another",
    "return torch.add(x, torch.add(9223372036854775807, 9223372036854775807))": "beyond bounds",
    "return torch.mul([1], 9000000000000)": "multiplied",
    "return x.shape": "no attribute shape",
    'torch._set_item(self, "training", True)\n    return x': "_set_item of an object",
    'return self["training"]': "looked into",
    "return (x).forward(x, )": "no method forward",
    "return torch.view(x, [7, 7])": "shape",
    'ops.prim.RaiseException("not this")\n    return x': "not this",
    "return self.nothing": "nothing",
    "return CONSTANTS.c9": "no tensor",
    "return torch.zeros([99999999999, 99999999999])": "cannot be run",
}


@pytest.mark.parametrize("text", RUN)
def test_what_goes_wrong_as_it_runs_is_one_line(tmp_path, text) -> None:
    plain = write_script(One().eval(), tmp_path / "plain.pt")
    net = TorchScript(rewrite(plain, tmp_path / "net.pt", {"test_torchscript.py": (LINE, text)}))
    with pytest.raises(Refusal) as refusal:
        net(torch.zeros(1, 3, 8, 8))
    assert RUN[text] in str(refusal.value) and "\n" not in str(refusal.value)


def test_code_that_would_run_while_a_file_is_read_is_refused(tmp_path) -> None:
    with pytest.raises(Refusal, match=r"Remembers\.__(set|get)state__"):
        TorchScript(write_script(Remembers().eval(), tmp_path / "net.pt"))


def test_a_network_that_changes_its_weights_or_trains_is_refused(tmp_path) -> None:
    net = TorchScript(write_script(Grows().eval(), tmp_path / "net.pt"))
    with pytest.raises(Refusal, match="changes its own weights"):
        net(torch.zeros(1, 3, 8, 8))
    with pytest.raises(Refusal, match=r"call \.eval\(\)"):
        TorchScript(write_script(cnn().train(), tmp_path / "training.pt"))


def test_a_pickle_that_calls_is_refused(tmp_path) -> None:
    plain = write_script(One().eval(), tmp_path / "plain.pt")
    file = rewrite(plain, tmp_path / "net.pt", {"data.pkl": ("__torch__.test_torchscript\nOne", "posix\nsystem")})
    with pytest.raises(Refusal, match=r"posix\.system|no forward"):
        TorchScript(file)


@pytest.mark.parametrize(
    "text", ["return (x", "return x\x00", "return " + "(" * 5000, "return " + "-" * 100_000 + "x"]
)
def test_code_that_is_none(tmp_path, text) -> None:
    plain = write_script(One().eval(), tmp_path / "plain.pt")
    with pytest.raises(Refusal, match="is no TorchScript"):
        TorchScript(rewrite(plain, tmp_path / "net.pt", {"test_torchscript.py": (LINE, text)}))


def test_other_files_are_refused(tmp_path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(Refusal, match=r"damaged: .*constants"):
        TorchScript(tmp_path / "weights.pth")
    with pytest.raises(Refusal, match="zip"):
        TorchScript(tmp_path / "text.pt")
