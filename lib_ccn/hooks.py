"""Hooks on what others use too, and functions in front of their methods: they leave nothing.

Pipelines share their networks with others, in other threads too, whose calls are none of ours.
Only torch is imported.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, update_wrapper
from typing import Any

from torch import Tensor, nn
from torch._C._nn import scaled_dot_product_attention  # hosts replace torch.nn.functional's
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from .regional_attention import Attend

COMPILED = "_orig_mod."  # what torch.compile puts in front of a module's names
# Why hooks on an attention module are of no use.
BY_COMPILATION = "is compiled (torch.compile)"
BY_FUSED_PROJECTIONS = "has fused projections (fuse_qkv_projections)"
_CHAINS = threading.Lock()
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A module's hook that is not called in other threads than this one."""
    thread = threading.get_ident()

    def heard(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == thread else None

    return heard


def listen(hooks: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Callable[[], None]:
    """Set a forward hook on each of these modules, once on one; returns what takes them away.

    For many that come and go with every call: `register_forward_hook` takes longer than they do.
    """
    number = RemovableHandle(OrderedDict()).id  # nobody else's
    for module, hook in hooks:
        module._forward_hooks[number] = hook

    def undo() -> None:
        for module, _hook in hooks:
            module._forward_hooks.pop(number, None)

    return undo


def held(t: Tensor) -> Tensor:
    """A host's tensor to keep for a while, without what it was computed from."""
    return t.detach() if t.requires_grad else t


@contextmanager
def answered(owner: Any, name: str, answer: Callable[..., Any]) -> Iterator[None]:
    """`owner.name(...)` is `answer(own, ...)` inside, in this thread; see `put_in_front`."""
    undo = put_in_front(owner, name, answer, thread=threading.get_ident())
    try:
        yield
    finally:
        undo()


def put_in_front(
    owner: Any,
    name: str,
    ours: Callable[..., Any],
    *,
    thread: int | None = None,
    stays: bool = False,
) -> Callable[[], None]:
    """From now on `owner.name(...)` calls `ours(own, ...)`; other instances are not touched.

    Several may do it to one object, in other threads too, and undo it in any order.

    Args:
        owner: the object whose method it is.
        name: of the method.
        ours: gets the method as it was before, and its arguments.
        thread: others get the method as it was; None: `ours` is for all.
        stays: `ours` knows by itself when it has nothing to do: it goes on being called where
            somebody else keeps it.

    Returns:
        What undoes it. If somebody else has put theirs in front of ours in the meantime, theirs
        stays, and ours only steps aside.
    """
    with _CHAINS:
        link = _InFront(owner, name, ours, thread)
        owner.__dict__[name] = link

    def undo() -> None:
        with _CHAINS:
            link.take_out(stays)

    return undo


def is_in_front(owner: Any, name: str) -> bool:
    """Whether `owner.name(...)` calls a function of ours first."""
    return bool(getattr(getattr(owner, name, None), "is_cross_controlnet", False))


def free_copy(owner: Any, name: str) -> None:
    """Take from a copied object what was put in front of the original's method.

    A copy has the original's attributes; with ours among them it would call the original.
    """
    found = owner.__dict__.get(name)
    if isinstance(found, _InFront) and found.owner is not owner:
        found.restore(owner)


class _InFront:
    """A method with ours in front of it; `behind` is what the object itself had, or None."""

    def __init__(self, owner: Any, name: str, ours: Callable[..., Any], thread: int | None) -> None:
        self.owner = owner
        self.name = name
        self.ours = ours
        self.thread = thread
        self.behind = owner.__dict__.get(name)
        self.is_cross_controlnet = self.is_called = True
        update_wrapper(self, self.own, updated=())  # for whoever asks for its signature

    @property
    def own(self) -> Callable[..., Any]:
        """What would be called without us."""
        # The class's is looked up at each call: the WebUI replaces it for the whole class.
        return self.behind or partial(getattr(type(self.owner), self.name), self.owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = self.own
        if not self.is_called or self.thread not in (None, threading.get_ident()):
            return own(*args, **kwargs)
        return self.ours(own, *args, **kwargs)

    def __deepcopy__(self, _memo: Any) -> _InFront:
        return self  # as functions are: a copied owner has the original's

    def take_out(self, stays: bool) -> None:
        """Leave the object's chain of such methods, wherever in it."""
        self.is_cross_controlnet, self.is_called = False, stays
        ahead = self.owner.__dict__.get(self.name)
        if ahead is self:
            self.restore(self.owner)
            return
        while isinstance(ahead, _InFront) and ahead.behind is not self:
            ahead = ahead.behind
        if isinstance(ahead, _InFront):
            ahead.behind = self.behind

    def restore(self, owner: Any) -> None:
        """Give an object what it had itself."""
        if self.behind is None:
            del owner.__dict__[self.name]
        else:
            owner.__dict__[self.name] = self.behind


# (attend, query, key, value), each [B, heads, tokens, d], to the result in the query's shape.
Answer = Callable[[Attend, Tensor, Tensor, Tensor], Tensor]


class AttentionCalls(TorchFunctionMode):
    """Lets an `answer` stand in for torch's attention function, in the thread that entered it.

    A mode hears every function of torch's, fifteen of them in a layer, at 3 microseconds each.
    Something in front of `torch.nn.functional`'s own would cost a third of that; but networks that
    others have compiled, in other threads too, would be compiled anew when they find it there.

    Attributes:
        masked: how many calls had a mask, which is not for us.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self.masked = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs) if kwargs else func(*args)
        named = {**dict(zip(_ARGUMENTS, args, strict=False)), **(kwargs or {})}
        if named.get("attn_mask") is not None or named.get("is_causal"):
            self.masked += 1
            return func(*args, **(kwargs or {}))
        query, key, value = (named.pop(name) for name in _ARGUMENTS[:3])
        return self.answer(partial(func, **named), query, key, value)


def why_unheard(attention: nn.Module, compiled: Container[nn.Module]) -> str:
    """Why hooks on an attention's projections are of no use; "" where they are of use."""
    if attention in compiled:
        return BY_COMPILATION
    # diffusers' flag of it stays when they are taken apart again; the processor does not.
    fused = "Fused" in type(getattr(attention, "processor", None)).__name__
    return BY_FUSED_PROJECTIONS if fused else ""


def compiled_within(network: nn.Module) -> set[nn.Module]:
    """The modules of a network that `torch.compile` or `module.compile` took in.

    They run as they were compiled: a hook that comes later is not called, and one that was there
    would stay in it.
    """
    return {inner for part in network.modules() if is_compiled(part) for inner in part.modules()}


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile(module)` made it, or `module.compile()` was called."""
    made_into = getattr(module, "_compiled_call_impl", None)  # unknown before torch 2.2
    return made_into is not None or COMPILED.rstrip(".") in module._modules
