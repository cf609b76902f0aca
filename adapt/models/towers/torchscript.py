"""Networks of TorchScript (`torch.jit.save`), read as data and run without TorchScript.

`torch.jit.load` runs a file's code as it reads it (`__setstate__`), and that code may call every operator that torch
has: `aten::save` writes files, `aten::from_file` reads them. A check before such a load would have to read the text
exactly as torch does; where the two differ, code gets through. So nothing here asks torch to load or to compile:

- Weights and attributes come from checkpoint.py, which reads pickles without calling what they name.
- The code is text in the syntax of Python. It is parsed into a tree, and every statement, every expression and every
  operator of every function of the file, used or not, must be one of those named below; else the file is refused by
  the name of what it asks for, before anything was computed.
- The tree is then walked (`_Walker`): operators of `TENSORS` are called as `torch.ops.aten.NAME` and take and give
  tensors and numbers; what concerns numbers and lists is done by Python. Nothing else can be reached from here: no
  attribute of a Python object, no import, no name of Python.

What a network computes is therefore bounded to tensor arithmetic. Steps and nested calls are counted, so that loops
end. Operators that draw random numbers are not named; a network in training mode, or one that changes its own weights
as it runs, is refused. It may still ask for as much memory as it likes: torch then says so.
"""

import ast
import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapt.errors import Refusal
from adapt.models.towers.checkpoint import DEEPEST, Attributes, View, read_script
from adapt.text import one_line

NAMED = """
conv1d conv2d conv3d conv_transpose1d conv_transpose2d _convolution convolution linear matmul mm bmm addmm addbmm
baddbmm einsum scaled_dot_product_attention embedding pairwise_distance cosine_similarity batch_norm layer_norm
group_norm instance_norm rms_norm norm linalg_norm linalg_vector_norm frobenius_norm relu relu_ relu6 relu6_ hardtanh
hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ silu silu_ gelu gelu_ leaky_relu leaky_relu_ elu elu_ selu
selu_ celu celu_ prelu glu mish mish_ softplus softsign sigmoid sigmoid_ tanh tanh_ softmax log_softmax log_sigmoid
threshold threshold_ max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d lp_pool2d upsample_nearest1d upsample_nearest2d
upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler
affine_grid_generator pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d view
view_as reshape reshape_as flatten unflatten permute transpose transpose_ t numpy_T contiguous squeeze squeeze_
unsqueeze unsqueeze_ expand expand_as repeat repeat_interleave tile cat concat stack split split_with_sizes chunk
unbind select slice narrow roll flip rot90 movedim moveaxis swapaxes swapdims pixel_shuffle pixel_unshuffle
channel_shuffle unfold im2col col2im index index_select gather masked_fill masked_fill_ masked_select take where tril
triu diagonal add add_ sub sub_ rsub mul mul_ div div_ true_divide floor_divide remainder fmod pow pow_ neg neg_ sqrt
sqrt_ rsqrt rsqrt_ exp exp_ log log2 log10 log1p expm1 abs abs_ square reciprocal sign floor floor_ ceil round trunc
sin cos tan atan2 erf clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ clip clip_ minimum maximum max min amax
amin mean sum prod var std var_mean std_mean argmax argmin cumsum cumprod topk sort argsort logsumexp all any eq ne lt
le gt ge logical_not logical_and logical_or logical_xor bitwise_not bitwise_and bitwise_or __and__ __or__ isnan isinf
isfinite nan_to_num lerp addcmul addcdiv outer cdist cross dot zeros ones full arange linspace eye zeros_like ones_like
full_like new_zeros new_ones new_full scalar_tensor meshgrid cartesian_prod broadcast_tensors broadcast_to to
type_as clone detach alias copy_ fill_ zero_ item is_floating_point is_complex numel fft_fft fft_fft2 fft_fftn fft_ifft
fft_ifft2 fft_ifftn fft_rfft fft_rfft2 fft_irfft fft_irfft2 fft_fftshift fft_ifftshift real imag angle complex polar
view_as_real view_as_complex
_native_multi_head_attention
"""
TENSORS = set(NAMED.split())  # names below torch.ops.aten: from tensors and numbers to such, without chance and files
DROPS = {name for stem in ("dropout", "feature_dropout", "alpha_dropout") for name in (stem, f"{stem}_")}
DRAWS = {  # may stand in a branch for training; refused where one is reached, as scores would not be repeatable
    *("empty", "empty_like", "new_empty", "bernoulli", "bernoulli_", "rand", "rand_like", "randn", "randn_like"),
    *("randint", "randperm", "normal", "normal_", "uniform_", "multinomial"),
}
ALWAYS: dict[str, Callable[..., Any]] = {  # what is done by Python, whatever it is given
    "size": lambda x, dim=None: list(x.shape) if dim is None else x.shape[dim],
    "dim": lambda x: x.dim(),
    "len": len,
    "append": lambda x, item: x.append(item),
    "extend": lambda x, more: x.extend(more[:MOST_STEPS]),
    **{name: lambda x: x[:] for name in ("list", "copy")},
    "_set_item": lambda x, i, item: x.__setitem__(i, item),
    "__is__": lambda a, b: a is b,
    "__isnot__": lambda a, b: a is not b,
    "__not__": lambda x: not x,
    "__contains__": lambda x, item: item in x,
    "__getitem__": lambda x, i: x[i],
    "__range_length": lambda low, high, step: len(range(low, high, step)),
    "__derive_index": lambda i, start, step: start + i * step,
    "format": lambda words, *_: words,  # of an error: what is filled in is not worth what a format may ask for
    **{name: lambda *_: False for name in ("is_grad_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled")},
    "warn": lambda *_, **__: None,
}
NUMBERS: dict[str, Callable[..., Any]] = {  # and what Python does where no tensor is among the arguments
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "neg", "eq", "ne", "lt", "le", "gt", "ge")},
    **{"div": operator.truediv, "floordiv": operator.floordiv, "floor_divide": operator.floordiv, "abs": abs},
    **{"remainder": operator.mod, "pow": math.pow, "sqrt": math.sqrt, "ceil": math.ceil, "floor": math.floor},
    **{
        "slice": lambda x, low=None, high=None, step=1: x[low:high:step],
        "__and__": operator.and_,
        "__or__": operator.or_,
    },
}
CODES = {  # torch's numbers of its dtypes, which are what a script writes and what its operators take
    **{torch.uint8: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.int64: 4, torch.float16: 5},
    **{torch.float32: 6, torch.float64: 7, torch.complex64: 9, torch.complex128: 10, torch.bool: 11},
    torch.bfloat16: 15,
}
OF_CODE = {code: dtype for dtype, code in CODES.items()}
ALWAYS["tensor"] = lambda data, dtype=None, device=None, **_: torch.tensor(
    data, dtype=OF_CODE.get(dtype), device=device
)
KNOWN = {*TENSORS, *DROPS, *DRAWS, *ALWAYS, *NUMBERS}
PRIM: dict[str, Callable[..., Any]] = {
    "NumToTensor": torch.tensor,
    "dtype": lambda x: CODES[x.dtype],
    "device": lambda x: x.device,
    "layout": lambda _: 0,
    "is_cuda": lambda x: x.is_cuda,
    "requires_grad": lambda _: False,
    "is_nested": lambda _: False,
    "type": lambda device: torch.device(device).type,
    "min": min,
    "max": max,
    "unchecked_unwrap_optional": lambda x: x,
}
CASTS: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "bool": bool}
NOT_KEPT = {"__setstate__", "__getstate__"}  # which torch runs as it reads a file
SINCE = {
    "div": 4,
    "div_": 4,
    "full": 5,
}  # version of the operators from which they mean what they mean today: torch 1.6
MOST_STEPS, MOST_CALLS = 1_000_000, 64  # statements of one pass; calls in one another
MOST_NUMBER = 2**63
ERRORS = (
    *(
        RuntimeError,
        MemoryError,
        TypeError,
        ValueError,
        LookupError,
        AttributeError,
        ArithmeticError,
        NotImplementedError,
    ),
    RecursionError,
)


class TorchScript(nn.Module):
    """Pixels (n, 3, h, w) float32 -> whatever the file's `forward` gives."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        script = read_script(file)
        program = _Program(file, script.sources)
        if old := [name for name in program.operators if script.version < SINCE.get(name, 0)]:
            raise Refusal(
                f"{file}: {old[0]} was written by torch before 1.6: load it there, or later, and save it again"
            )
        if not isinstance(script.module, Attributes) or "forward" not in program.classes.get(script.module.kind, {}):
            raise Refusal(f"{file}: its module has no forward")
        _refuse_training(file, script.module)
        self.file, self._program, self._module = file, program, script.module
        self._names: dict[View, str] = {}
        for view, load in script.tensors.items():
            self._names[view] = f"tensor{len(self._names)}"
            self.register_buffer(self._names[view], load())
        for i, one in enumerate(script.constants):
            if not isinstance(one, View):
                raise Refusal(f"{file}: constant {i} of its code is no tensor")
            self.register_buffer(f"c{i}", script.load_constant(one))
        self.register_buffer("_device", torch.zeros(0), persistent=False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Any:
        before = [tensor._version for tensor in self.buffers()]
        found = _Walker(self._program, self.file, self._own, self._device.device).run(self._module, pixels)
        if [tensor._version for tensor in self.buffers()] != before:
            raise Refusal(f"{self.file} changes its own weights as it runs: no image would be scored twice alike")
        return found

    def _own(self, name: View | str) -> Tensor:
        """A tensor of the module, or c0, c1... of the code; where the network is now."""
        found = self._buffers.get(self._names.get(name, "") if isinstance(name, View) else name)
        if found is None:
            raise ValueError(f"no tensor {name}")
        return found


class _Program:
    """The functions of a file, of modules (by their name) and of classes (by theirs), all of which were looked at."""

    def __init__(self, file: Path, sources: Mapping[str, str]) -> None:
        self.file = file
        self.functions: dict[str, ast.FunctionDef] = {}
        self.classes: dict[str, dict[str, ast.FunctionDef]] = {}
        self.operators: set[str] = set()
        self._functions_named: set[str] = set()  # short names that functions have in others
        for module, text in sources.items():
            with self._readable(module):
                for node in ast.parse(text).body:
                    self._take(module, node)
        with self._readable("its code"):
            for function in (*self.functions.values(), *(f for each in self.classes.values() for f in each.values())):
                self._look(function)

    @contextlib.contextmanager
    def _readable(self, what: str) -> Iterator[None]:
        try:
            yield
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if isinstance(error, Refusal):
                raise
            raise Refusal(f"{self.file}: {what} is no TorchScript: {one_line(str(error), 200)}") from error

    def _take(self, module: str, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef):
            self.functions[f"{module}.{node.name}"] = node
        elif isinstance(node, ast.ClassDef):
            functions = [each for each in node.body if isinstance(each, ast.FunctionDef)]
            if kept := NOT_KEPT & {each.name for each in functions}:
                raise self._refuse(f"{node.name}.{kept.pop()}")
            self.classes[f"{module}.{node.name}"] = {each.name: each for each in functions}
        elif not isinstance(node, ast.Import) and not ast.unparse(node).startswith("op_version_set = "):
            raise self._refuse(ast.unparse(node))  # the two are of torch 1.3 and before

    def _refuse(self, what: str) -> Refusal:
        return Refusal(
            f"{self.file} asks for {one_line(what, 120)}, which is not among the operators that a network may have "
            "here (nothing was run): save torch.jit.freeze(network.eval()), or export to ONNX for `adapt import onnx`"
        )

    def _look(self, node: ast.AST) -> None:
        """Refuse what is not known, at this node and below. Annotations are not evaluated, and so not looked at."""
        below: Sequence[ast.AST | None]
        match node:
            case ast.FunctionDef(args=args):
                if args.vararg or args.kwarg or args.kwonlyargs or args.posonlyargs or node.decorator_list:
                    raise self._refuse(f"the arguments of {node.name}")
                below = [*args.defaults, *node.body]
            case ast.Assign(targets=[target], value=value) if names := _names_of(target):
                self._functions_named |= {*names} if _dotted(value) in self.functions else set()
                below = [value]
            case ast.AnnAssign(target=ast.Name(), value=value):
                below = [value]
            case ast.Return(value=value) | ast.Expr(value=value):
                below = [value]
            case ast.If(test=test) | ast.While(test=test):
                below = [test, *node.body, *node.orelse]
            case ast.For(
                target=ast.Name(), iter=ast.Call(func=ast.Name(id="range"), args=args, keywords=[]), orelse=[]
            ):
                below = [*args, *node.body]
            case ast.For(target=ast.Name(), iter=iterated, orelse=[]):
                below = [iterated, *node.body]
            case ast.Pass() | ast.Name():
                below = []
            case ast.Constant(value=value) if value is None or isinstance(value, bool | int | float | str):
                below = []
            case ast.List(elts=below) | ast.Tuple(elts=below):
                pass
            case ast.Dict(keys=keys, values=values) if None not in keys:
                below = [*keys, *values]
            case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
                below = [operand]
            case ast.Subscript(value=value, slice=ast.Slice() as part):
                below = [value, part.lower, part.upper, part.step]
            case ast.Subscript(value=value, slice=index):
                below = [value, index]
            case ast.Attribute():
                self._look_at_name(node)
                below = [] if _dotted(node) else [node.value]
            case ast.Call():
                below = self._look_at_call(node)
            case _:
                raise self._refuse(ast.unparse(node))
        for each in below:
            if each is not None:
                self._look(each)

    def _look_at_name(self, node: ast.Attribute) -> None:
        """Of what is not called: a constant, a function of the file, or an attribute of an object of the file."""
        root, _, rest = _dotted(node).partition(".")
        known = {"CONSTANTS": "." not in rest, "__torch__": _dotted(node) in self.functions}
        if not known.get(root, root not in ("torch", "ops")):
            raise self._refuse(_dotted(node))

    def _look_at_call(self, node: ast.Call) -> Sequence[ast.AST]:
        """Refuse an operator that is not named above; returns what is evaluated for the call."""
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        if any(isinstance(each, ast.Starred) for each in node.args) or any(k.arg is None for k in node.keywords):
            raise self._refuse(ast.unparse(node))
        match node.func, _dotted(node.func).split("."):
            case ast.Name(id="annotate" | "unchecked_cast"), _ if len(given) == 2:
                return given[1:]
            case ast.Name(id="uninitialized"), _:
                return []
            case ast.Name(id="getattr"), _ if len(given) == 2 and isinstance(given[1], ast.Constant):
                return given[:1]
            case ast.Name(id=name), _ if name in CASTS or name in self._functions_named:
                return given
            case _, ["torch", "device"]:
                return []
            case _, ["torch", name] | ["ops", "aten", name] if name in KNOWN:
                self.operators.add(name)
                return given
            case _, ["ops", "prim", name] if name in PRIM:
                return given
            case _, ["ops", "prim", "RaiseException"]:
                return given[:1]
            case _, ["__torch__", *_] if _dotted(node.func) in self.functions:
                return given
            case ast.Attribute(value=of, attr=method), [root, *_] if root not in ("torch", "ops", "__torch__"):
                if any(method in methods for methods in self.classes.values()):
                    return [of, *given]
        raise self._refuse(ast.unparse(node.func))


class _Return(Exception):
    """A function ends with this value."""


class _Walker:
    """One pass through the functions of a file."""

    def __init__(
        self, program: _Program, file: Path, tensor: Callable[[View | str], Tensor], device: torch.device
    ) -> None:
        self.program, self.file, self.tensor, self.device = program, file, tensor, device
        self.steps, self.calls = 0, 0

    def run(self, module: Attributes, pixels: Tensor) -> Any:
        """What the module's `forward` gives; what goes wrong on the way is one line."""
        try:
            return self._method(module, "forward", [pixels], {})
        except (Refusal, torch.OutOfMemoryError):
            raise
        except ERRORS as error:
            words = one_line(str(error).partition("\n")[0], 200) or type(error).__name__
            raise Refusal(f"{self.file} cannot be run on images of this size: {words}") from error

    def _method(self, of: Any, name: str, given: list[Any], named: dict[str, Any]) -> Any:
        methods = self.program.classes.get(of.kind, {}) if isinstance(of, Attributes) else {}
        if name not in methods:
            raise TypeError(f"no method {name} of {type(of).__name__}")
        return self._function(methods[name], [of, *given], named)

    def _function(self, function: ast.FunctionDef, given: list[Any], named: dict[str, Any]) -> Any:
        names, defaults = [each.arg for each in function.args.args], function.args.defaults
        local: dict[str, Any] = {}
        if defaults:
            local |= dict(zip(names[-len(defaults) :], (self._value(each, {}) for each in defaults), strict=True))
        local |= dict(zip(names, given, strict=False)) | named
        if len(given) > len(names) or local.keys() != set(names):
            raise TypeError(f"{function.name} takes {', '.join(names)}")
        self.calls += 1
        if self.calls > MOST_CALLS:
            raise RecursionError(f"more than {MOST_CALLS} calls in one another")
        try:
            self._block(function.body, local)
        except _Return as end:
            return end.args[0]
        finally:
            self.calls -= 1
        return None

    def _block(self, body: Sequence[ast.stmt], local: dict[str, Any]) -> None:
        for node in body:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise RuntimeError(f"it does not end within {MOST_STEPS} steps")
            match node:
                case ast.Assign(targets=[target], value=value):
                    self._assign(target, self._value(value, local), local)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    self._assign(target, self._value(value, local), local)
                case ast.Return(value=value):
                    raise _Return(None if value is None else self._value(value, local))
                case ast.Expr(value=value):
                    self._value(value, local)
                case ast.If(test=test):
                    self._block(node.body if self._value(test, local) else node.orelse, local)
                case ast.While(test=test):
                    while self._value(test, local):
                        self._block([ast.Pass(), *node.body], local)
                case ast.For(target=target, iter=iterated):
                    for item in self._value(iterated, local):
                        self._assign(target, item, local)
                        self._block([ast.Pass(), *node.body], local)

    def _assign(self, target: ast.expr, value: Any, local: dict[str, Any]) -> None:
        names = _names_of(target)
        local |= dict(zip(names, value, strict=True)) if isinstance(target, ast.Tuple) else {names[0]: value}

    def _value(self, node: ast.expr, local: dict[str, Any]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return local[name] if name in local else {"inf": math.inf, "nan": math.nan}[name]
            case ast.Call():
                return self._call(node, local)
            case ast.Attribute(value=of, attr=name):
                dotted = _dotted(node)
                if dotted.startswith("CONSTANTS."):
                    return self.tensor(name)
                return self.program.functions.get(dotted) or self._held(self._value(of, local), name)
            case ast.List(elts=items):
                return [self._value(item, local) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self._value(item, local) for item in items)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {self._value(k, local): self._value(v, local) for k, v in pairs if k is not None}
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, local)
            case ast.UnaryOp(operand=operand):
                return -self._value(operand, local)
            case ast.Subscript(value=of, slice=ast.Slice(lower=low, upper=high, step=step)):
                part = slice(*(None if each is None else self._value(each, local) for each in (low, high, step)))
                return _plain(self._value(of, local))[part]
            case ast.Subscript(value=of, slice=index):
                return _plain(self._value(of, local))[self._value(index, local)]
        raise TypeError(ast.unparse(node))

    def _held(self, of: Any, name: str) -> Any:
        """An attribute of an object of the file, and of nothing else."""
        if not isinstance(of, Attributes):
            raise TypeError(f"no attribute {name} of {type(of).__name__}")
        return self._loaded(of[name])

    def _loaded(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, View):
            return self.tensor(value)
        if isinstance(value, Attributes) or depth > DEEPEST or not isinstance(value, list | tuple | dict):
            return value
        if isinstance(value, dict):
            return {key: self._loaded(item, depth + 1) for key, item in value.items()}
        return type(value)(self._loaded(item, depth + 1) for item in value)

    def _call(self, node: ast.Call, local: dict[str, Any]) -> Any:
        match node.func, _dotted(node.func).split("."):
            case ast.Name(id="annotate" | "unchecked_cast"), _:
                value, kind = self._value(node.args[1], local), node.args[0]
                cast = CASTS.get(kind.id) if isinstance(kind, ast.Name) and isinstance(value, Tensor) else None
                return cast(value) if cast else value
            case ast.Name(id="uninitialized"), _:
                return None
            case ast.Name(id="getattr"), _:
                return self._held(self._value(node.args[0], local), ast.literal_eval(node.args[1]))
            case _, ["torch", "device"]:
                return self.device  # where the network is now, not where it was when it was saved
            case _, ["ops", "prim", "RaiseException"]:
                raise ValueError(f"it says {self._value(node.args[0], local)!r}")
        given = [self._value(each, local) for each in node.args]
        named = {str(keyword.arg): self._value(keyword.value, local) for keyword in node.keywords}
        match node.func, _dotted(node.func).split("."):
            case ast.Name(id=name), _ if isinstance(local.get(name), ast.FunctionDef):
                return self._function(local[name], given, named)
            case ast.Name(id="range"), _:
                return range(*given)
            case ast.Name(id=name), _:
                return CASTS[name](*given)
            case _, ["ops", "prim", name]:
                return PRIM[name](*given, **named)
            case _, ["torch", name] | ["ops", "aten", name]:
                return _operator(name, given, named)
            case _, ["__torch__", *_]:
                return self._function(self.program.functions[_dotted(node.func)], given, named)
            case ast.Attribute(value=of, attr=name), _:
                return self._method(self._value(of, local), name, given, named)
        raise TypeError(ast.unparse(node.func))


def _plain(value: Any) -> Any:
    """What may be looked into by an index: no object."""
    if isinstance(value, Attributes):
        raise TypeError("an object is looked into")
    return value


def _operator(name: str, given: list[Any], named: dict[str, Any]) -> Any:
    if name in DROPS:
        if given[2] if len(given) > 2 else named["train"]:
            raise ValueError(f"{name} in training mode")
        return given[0]
    if name in DRAWS:
        raise ValueError(f"{name} draws random numbers")
    if any(isinstance(each, Attributes) for each in given):
        raise TypeError(f"{name} of an object")
    if name == "mul" and any(isinstance(each, list | tuple | str) for each in given):
        raise TypeError("a list is multiplied")
    if name in ALWAYS:
        return ALWAYS[name](*given, **named)
    if name in NUMBERS and not any(isinstance(each, Tensor) for each in given):
        found = NUMBERS[name](*given, **named)
        if abs(found) > MOST_NUMBER if isinstance(found, int) else isinstance(found, list) and len(found) > MOST_STEPS:
            raise OverflowError(f"a number or a list grows beyond bounds in {name}")
        return found
    try:
        return getattr(torch.ops.aten, name)(*given, **named)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RuntimeError(f"{name}: {error}") from error


def _dotted(node: ast.expr) -> str:
    """`a.b.c` of attributes of a name; nothing of other expressions."""
    if isinstance(node, ast.Attribute):
        return f"{left}.{node.attr}" if (left := _dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def _names_of(target: ast.expr) -> list[str]:
    """The names that an assignment gives values to; none where it changes anything else."""
    names = target.elts if isinstance(target, ast.Tuple) else [target]
    return (
        [each.id for each in names if isinstance(each, ast.Name)]
        if all(isinstance(e, ast.Name) for e in names)
        else []
    )


def _refuse_training(file: Path, module: Attributes) -> None:
    seen: set[int] = set()
    waiting: list[Any] = [module]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Attributes) and id(one) not in seen:
            seen.add(id(one))
            if one.get("training") is True:
                raise Refusal(f"{file} was saved in training mode: call .eval() before it is traced or scripted")
            waiting += one.values()
