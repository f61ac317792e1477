"""Modules of the package `rewardbench`, each by itself: importing it as a whole asks for fschat, wandb and more."""

import contextlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

_SPEC = importlib.util.find_spec("rewardbench")

needs_rewardbench = pytest.mark.skipif(_SPEC is None, reason="the package rewardbench is not installed")


def peer(module, **stand_ins):
    """One of its files, with stand-ins for what it imports and the tests do not run."""
    path = Path(_SPEC.origin).parent / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"rewardbench_{path.stem}", path)
    found = importlib.util.module_from_spec(spec)
    with _standing_in({name.replace("__", "."): _module(one) for name, one in stand_ins.items()}):
        spec.loader.exec_module(found)
    return found


@contextlib.contextmanager
def _standing_in(modules):
    """Unlike `patch.dict`, leaves there what else is imported meanwhile."""
    kept = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(kept)


def _module(names):
    module = ModuleType("stand-in")
    vars(module).update(names)
    return module


def utils():
    """What it computes with."""
    return peer(
        "utils",
        fastchat__conversation={"Conversation": object},
        rewardbench={},
        rewardbench__models={"REWARD_MODEL_CONFIG": {}},
    )


def runner(model_config):
    """`rewardbench.rewardbench` and its `Args`, with one model registered as the default."""
    own = utils()
    names = ("check_tokenizer_chat_template", "load_and_process_dataset", "torch_dtype_mapping")
    package = {name: getattr(own, name) for name in names}
    package |= {"DPO_MODEL_CONFIG": {}, "REWARD_MODEL_CONFIG": {"default": model_config}}
    return peer("rewardbench", wandb={}, pkg_resources={"working_set": SimpleNamespace()}, rewardbench=package)
