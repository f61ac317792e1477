"""A sample of what `make fuzz` runs."""

import json
import subprocess
import sys


def test_damage_is_refused_by_name_or_changes_no_number(tmp_path):
    verdicts = tmp_path / "verdicts.json"
    command = [sys.executable, "-m", "fuzz", "--count", "150", "--seed", "1", "--jobs", "1", "--json", str(verdicts)]
    run = subprocess.run(command, cwd="tests", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = [attack["verdict"] for attack in json.loads(verdicts.read_text())]
    assert len(found) >= 150
    assert {"refused", "same"} <= set(found)
