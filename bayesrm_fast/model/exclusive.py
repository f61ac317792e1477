"""A model for one thread at a time, and in one state of torch whatever the caller's is."""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import nn

from bayesrm_fast.locks import lock_of
from bayesrm_fast.model.offloaded import input_device, staying_weight

P = ParamSpec("P")
R = TypeVar("R")


class HasModel(Protocol):
    """What has a model."""

    model: Any


O = TypeVar("O", bound=HasModel)  # noqa: E741


@contextlib.contextmanager
def in_own_state(device_type: str = "cpu") -> Iterator[None]:
    """Torch as it is by default, but for the default dtype.

    A caller's inference mode, which forbids a backward pass, its autocast and its default device, which change numbers,
    do not reach inside. They belong to the thread; the default dtype belongs to the process, and is not touched.

    Args:
        device_type: whose autocast is left, beside the CPU's.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        for name in {"cpu", device_type}:
            if torch.is_autocast_enabled(name):
                stack.enter_context(torch.autocast(name, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def exclusively(model: nn.Module) -> Iterator[None]:
    """Have a model to oneself, `in_own_state`: other threads wait, this one may ask again.

    The lock goes by the model's first weight, which models on one base share, whatever wraps it; of those that stay,
    because an offloaded one is another after each call.
    """
    weight = staying_weight(model)
    with lock_of(model if weight is None else weight), in_own_state(input_device(model).type):
        yield


def exclusive(method: Callable[Concatenate[O, P], R]) -> Callable[Concatenate[O, P], R]:
    """A method that has its object's model to itself from beginning to end."""

    @wraps(method)
    def run(owner: O, *args: P.args, **options: P.kwargs) -> R:
        with exclusively(owner.model):
            return method(owner, *args, **options)

    return run
