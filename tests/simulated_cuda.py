"""A simulated GPU: tensors that say they are on cuda:0, hold their values on the CPU, and refuse what CUDA refuses.

`device()` turns it on for good, so it belongs into a child process. Refused: an operation on tensors of both devices
(but for numbers and what CUDA takes from the CPU: indices, copies), NumPy's view of a tensor on the device, a CPU's
generator on the device, pinning. Not simulated: speed, memory, and the last bits of CUDA's own sums.
"""

import os

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
BETWEEN = ("aten::copy_", "aten::_to_copy", "aten::_local_scalar_dense", "aten::set_")  # take both devices
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
operations: dict[str, int] = {}  # on the device: how often each ran


class OnDevice(torch.Tensor):
    """A tensor on the simulated device; `held` has its values. For autograd it is a CPU's tensor."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return dispatch(operation, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype)
        device, dtype, *_ = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
        device, dtype = device or CUDA, dtype or self.dtype
        if device.type == "cuda" and dtype == self.dtype and not kwargs.get("copy"):
            return self
        return torch.ops.aten._to_copy.default(self, device=device, dtype=dtype)

    def cpu(self, *_, **__):
        return self.to(CPU)

    def cuda(self, *_, **__):
        return self

    def numpy(self, *_, **__):
        raise TypeError("simulated: can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")

    __array__ = numpy

    def pin_memory(self, *_, **__):
        raise RuntimeError("simulated: only dense CPU tensors can be pinned")

    def tolist(self):
        return self.held.tolist()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def data_ptr(self):
        return self.held.data_ptr()

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, new):
        torch._C.TensorBase.data.__set__(self, new)
        self.held = held(new)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = OnDevice(self.held.clone())
            own = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if own else copied
        return memo[id(self)]

    def __repr__(self, **_):
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"


class _Move(torch.autograd.Function):
    """From the CPU to the device, for autograd too."""

    @staticmethod
    def forward(ctx, tensor):
        return OnDevice(tensor.detach().clone())

    @staticmethod
    def backward(ctx, gradient):
        return held(gradient)


def held(value):
    return value.held if isinstance(value, OnDevice) else value


def on_device(value):
    return OnDevice(value) if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice) else value


def is_cuda(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def refuse_mixture(name: str, args, kwargs) -> None:
    """What CUDA says of an operation on tensors of both devices."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    plain = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim]
    if name in INDEXED and isinstance(args[0], OnDevice):
        plain = [tensor for tensor in plain if tensor.dtype.is_floating_point]  # indices may lie on the CPU
    if plain and name not in BETWEEN:
        shapes = [tuple(tensor.shape) for tensor in plain]
        raise RuntimeError(f"simulated: Expected all tensors to be on the same device: {name}, {shapes} on the CPU")
    refuse_generator(name, kwargs)


def refuse_generator(name: str, kwargs) -> None:
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError(f"simulated: Expected a 'cuda' device type for generator but found 'cpu': {name}")


def dispatch(operation, args, kwargs):
    """Run an operation on the values; its results are where CUDA would have them."""
    name, device = operation._schema.name, kwargs.get("device")
    given = any(isinstance(leaf, OnDevice) for leaf in tree_leaves((args, kwargs)))
    backward = torch._C._current_autograd_node() is not None  # where autograd makes tensors of its own, on "the CPU"
    if not given and not is_cuda(device):
        return below(operation, args, kwargs)
    operations[name] = operations.get(name, 0) + 1
    if given and not backward:
        refuse_mixture(name, args, kwargs)
    if name == "aten::copy_":
        there = isinstance(args[0], OnDevice)
    else:
        there = given if device is None or backward else is_cuda(device)
    plain = {key: value for key, value in kwargs.items() if key not in ("pin_memory", "non_blocking")}
    if "device" in plain:
        plain["device"] = CPU
    out = below(operation, *tree_map(held, (args, plain)))
    if name == "aten::_local_scalar_dense" or not there:
        return out
    out = tree_map(on_device, out)
    written = [
        value
        for spec, value in zip(operation._schema.arguments, args, strict=False)
        if spec.alias_info is not None and spec.alias_info.is_write and isinstance(value, torch.Tensor)
    ]
    if any(value.alias_info is not None and value.alias_info.is_write for value in operation._schema.returns):
        return written[0] if written else out  # in place: the very argument
    if any(value.alias_info is not None for value in operation._schema.returns):
        return return_and_correct_aliasing(operation, args, kwargs, out)
    return out


def below(operation, args, kwargs):
    guard = torch._C._DisableTorchDispatch()
    try:
        return operation(*args, **kwargs)
    finally:
        del guard


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return dispatch(operation, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """`tensor.to("cuda")` and `torch.zeros(..., device="cuda")`, which would ask for a real GPU further down."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if isinstance(function, torch._ops.OpOverload):
            return function(*args, **kwargs)
        if function is torch.Tensor.to and not isinstance(args[0], OnDevice):
            rest = args[1:]
            if rest and isinstance(rest[0], torch.Tensor):
                rest = (rest[0].device, rest[0].dtype)
            device, dtype, *_ = torch._C._nn._parse_to(*rest, **{k: v for k, v in kwargs.items() if k != "copy"})
            if is_cuda(device):
                return _Move.apply(args[0] if dtype is None else function(args[0], dtype))
        elif is_cuda(kwargs.get("device")):
            refuse_generator(function.__name__, kwargs)
            return on_device(function(*args, **kwargs | {"device": CPU}))
        return function(*args, **kwargs)


def device(bf16: bool = False) -> None:
    """Turn it on, for good: every `Processes` from here on is on cuda:0, whose bf16 is native or missing."""
    from accelerate.state import AcceleratorState, PartialState

    from adapt.processes import Processes

    cuda, fork_rng, start = torch.cuda, torch.random.fork_rng, Processes.__init__
    cuda._lazy_init = lambda: None
    cuda.is_bf16_supported = lambda *_, **__: bf16
    cuda.max_memory_allocated = lambda *_: 0
    cuda.get_device_name = lambda *_: "simulated"
    cuda.current_device = lambda: 0
    cuda.empty_cache = cuda.synchronize = lambda *_: None
    torch.random.fork_rng = lambda devices=None, *a, **k: fork_rng([], *a, **k)
    torch.nn.Module.cuda = lambda self, *_: self.to("cuda")
    torch.Tensor.cuda = lambda self, *_, **__: self.to("cuda")
    torch.__future__.set_swap_module_params_on_conversion(True)

    states = PartialState._shared_state, AcceleratorState._shared_state

    def init(self, *args, **kwargs):
        for state in states:  # accelerate itself must take the CPU, also a second time
            state.update({"device": CPU} if state else {})
        start(self, *args, **kwargs)
        self.device = CUDA
        for state in states:
            state["device"] = CUDA

    Processes.__init__ = init
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    _Operations().__enter__()
    _Functions().__enter__()
