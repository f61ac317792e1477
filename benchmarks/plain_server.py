"""What people run today: transformers behind FastAPI, a request at a time, rewards alone. `python -m … FOLDER PORT`."""

import sys
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer


def create_app(folder: str) -> FastAPI:
    """An app with OpenRLHF's route, whose requests wait for each other."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    one_at_a_time = threading.Lock()
    app = FastAPI()

    @app.post("/get_reward")
    def get_reward(body: dict[str, Any]) -> dict[str, list[float]]:
        batch = tokenizer(
            body["query"], add_special_tokens=False, padding=True, truncation=True, max_length=512, return_tensors="pt"
        )
        with one_at_a_time, torch.inference_mode():
            rewards: list[float] = model(**batch).logits[:, 0].tolist()
        return {"rewards": rewards, "scores": rewards}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), port=int(sys.argv[2]), log_level="error")
