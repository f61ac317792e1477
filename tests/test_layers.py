"""The house: what may import what, and what an import must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bayesrm_fast

PACKAGE = Path(bayesrm_fast.__file__).parent

LAYERS = [
    {"errors"},
    {"sites", "versions", "atomic", "locks", "schema"},
    {"record_files", "plots"},
    {"ops", "text"},
    {"model", "posterior", "proximity"},
    {"fit", "score", "saved"},
    {"select"},
    {"fitted_model"},
    {"drawing"},
    {"choosing_model"},
    {"reward_model"},
    {"ensemble"},
    {"__init__"},
    {"train", "evaluate", "serve"},
    {"integrations"},
    {"cli"},
    {"__main__"},
]
"""Lowest first. What stands together never imports each other; every import points down, or into its own package."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
COMPILED = {"_cpu", "_cuda"}


def modules():
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room_of(path):
    """The package of a module, or the module itself where it stands at the top."""
    return path.parts[0].removesuffix(".py")


def imported_by(path):
    """Rooms of this package that a module imports anywhere: in functions and for type checking alone, too."""
    own = ("bayesrm_fast", *path.with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(own[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            package, *rest = name.split(".")
            if package == "bayesrm_fast":
                first = rest[0] if rest else "__init__"
                is_room = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file() or first in COMPILED
                found.add(first if is_room else "__init__")
    return found - COMPILED


def test_every_room_is_on_the_list():
    assert {room_of(path) for path in modules()} == set(LEVEL)


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_point_down(path):
    own = room_of(path)
    wrong = {name for name in imported_by(path) - {own} if LEVEL[name] >= LEVEL[own]}
    assert not wrong, f"{path} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("room", sorted(LEVEL))
def test_modules_of_a_room_import_in_one_direction(room):
    """No circle within a package either."""
    inside = [path for path in modules() if room_of(path) == room]
    names = {".".join(("bayesrm_fast", *path.with_suffix("").parts)).removesuffix(".__init__"): path for path in inside}
    edges = {}
    for name, path in names.items():
        targets = set()
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                targets |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        edges[name] = {target for target in targets if target in names and target != name}
    waiting = dict(edges)
    while free := [name for name, targets in waiting.items() if not targets & waiting.keys()]:
        for name in free:
            del waiting[name]
    # The package's own face and its backends know each other by design: ops.backends names the backends' packages.
    assert not waiting, f"a circle: {', '.join(sorted(waiting))}"


def test_no_file_is_longer_than_it_can_be_read():
    root = PACKAGE.parent
    folders = ("bayesrm_fast", "benchmarks", "demo", "tests", "csrc")
    files = [path for folder in folders for path in (root / folder).rglob("*.*")]
    sources = [path for path in files if path.suffix in (".py", ".cpp", ".h", ".cu", ".cuh")]
    lines = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in sources}
    assert not {name: count for name, count in lines.items() if count > 450}


def loaded_after(statement):
    code = f"import sys; {statement}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import bayesrm_fast", {"torch", "transformers", "peft"}),
        ("import bayesrm_fast.cli.main", {"torch", "transformers", "peft", "trl", "datasets"}),
        ("import bayesrm_fast.ops", {"transformers", "peft", "triton"}),
        ("import bayesrm_fast.posterior.files", {"transformers", "peft"}),
        ("import bayesrm_fast.evaluate.scores_page", {"transformers", "peft", "matplotlib"}),
        ("import bayesrm_fast.text.encoder, bayesrm_fast.text.batches", {"transformers", "peft"}),
        ("import bayesrm_fast.proximity.similarity", {"sentence_transformers", "sklearn", "peft"}),
        ("from bayesrm_fast import InputError, PreferencePair", {"torch", "transformers", "peft"}),
    ],
)
def test_what_an_import_does_not_load(statement, absent):
    assert not loaded_after(statement) & absent


def test_a_name_that_needs_them_loads_them():
    assert {"torch", "transformers", "peft"} <= loaded_after("from bayesrm_fast import BayesianRewardModel")


def test_the_package_tells_its_names():
    assert set(bayesrm_fast.__all__) <= set(dir(bayesrm_fast))
    with pytest.raises(AttributeError, match="nothing"):
        bayesrm_fast.nothing  # noqa: B018


WITHOUT_LOGIC = {"sites.py", "versions.py", "__main__.py", "cli/__main__.py", "serve/requests.py", "cli/work.py"}
TESTED_WITH = dict.fromkeys(("fitted_model.py", "choosing_model.py"), "test_reward_model.py") | {
    "model/tap_pass.py": "test_taps.py",
    "model/virtual_options.py": "test_virtual.py",
    "saved/virtual_record.py": "test_virtual.py",
}
"""The face is one thing to its user, whichever of its files a method stands in; so are a pass of the taps and virtual
adapters."""


def test_the_tests_mirror_the_tree():
    """`ops` has its own: an operation's tests share its name, in `tests/ops/test_family.py`."""
    tests = Path(__file__).parent
    absent = []
    for path in modules():
        name = path.as_posix()
        if path.name == "__init__.py" or path.parts[0] == "ops" or name in WITHOUT_LOGIC:
            continue
        if not (tests / path.parent / TESTED_WITH.get(name, f"test_{path.name}")).is_file():
            absent.append(name)
    assert not absent
