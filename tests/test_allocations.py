"""Every tensor that the package makes names its dtype and its device: torch's defaults are a caller's to change."""

import ast
from pathlib import Path

import pytest

import bayesrm_fast

PACKAGE = Path(bayesrm_fast.__file__).parent

FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal"),
    *("ones", "rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices"),
    *("triu_indices", "zeros"),
}
"""Of `torch.`: what has no tensor to take dtype and device from."""

LEGACY = {
    "Tensor",
    "FloatTensor",
    "DoubleTensor",
    "HalfTensor",
    "BFloat16Tensor",
    "LongTensor",
    "IntTensor",
    "BoolTensor",
}
"""Constructors that cannot name them."""


def unnamed(source):
    """Lines of calls, or of references to be called elsewhere, that leave dtype or device to torch's defaults."""
    tree = ast.parse(source)
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg for keyword in node.keywords}
            if {"dtype", "device"} <= keywords:
                # `partial(torch.zeros, dtype=…, device=…)` names them too
                named |= {id(part) for part in (node.func, *node.args)}
            elif isinstance(node.func, ast.Attribute) and node.func.attr in LEGACY:
                yield node.lineno
    for node in ast.walk(tree):
        is_torch = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch"
        if is_torch and node.attr in FACTORIES and id(node) not in named:
            yield node.lineno
        is_import = isinstance(node, ast.ImportFrom) and node.module == "torch"
        if is_import and FACTORIES & {alias.name for alias in node.names}:
            yield node.lineno


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_new_tensor_names_its_dtype_and_its_device(path):
    assert not list(unnamed(path.read_text()))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.zeros(3, dtype=torch.float32, device=d)", False),
        ("torch.zeros(3, dtype=torch.float32)", True),
        ("torch.tensor([1], device=d)", True),
        ("partial(torch.randint, dtype=torch.int64, device=d)", False),
        ("map(torch.tensor, lists)", True),
        ("torch.zeros_like(x)", False),
        ("from torch import zeros", True),
        ("torch.FloatTensor(3)", True),
    ],
)
def test_what_is_found(source, found):
    assert bool(list(unnamed(source))) == found
