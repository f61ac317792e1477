"""A sample of what `make fuzz` runs."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_damage_is_refused_by_name_or_changes_no_number(tmp_path):
    command = [sys.executable, "-m", "fuzz", "--count", "150", "--seed", "1", "--json", str(tmp_path / "verdicts.json")]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = Counter(attack["verdict"] for attack in json.loads((tmp_path / "verdicts.json").read_text()))
    assert found.total() >= 150
    assert found["refused"] > 75
    assert found["same"] > 0
