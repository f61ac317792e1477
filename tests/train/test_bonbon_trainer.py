"""BoNBoN's loss over trl's trainer, against a loop over tokens in float64."""

import copy
import math

import pytest
import torch
from tiny import WORDS, tiny_adapter, tiny_pairs, tiny_policy, tiny_tokenizer, words
from tolerances import RELATIVE
from transformers import AutoModelForCausalLM

from bayesrm_fast import BayesianRewardModel, InputError
from bayesrm_fast.select.estimators import bonbon_beta
from bayesrm_fast.train.bonbon import bonbon_rows

pytest.importorskip("trl", reason="the extra `train` is not installed")

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig

from bayesrm_fast.train.bonbon_trainer import ALPHA, BonbonTrainer

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def a_policy(architecture="llama", **overrides):
    return tiny_policy(architecture, torch.float32, eos_token_id=2, **overrides)


def moved(model):
    """What training might have made of a policy."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def rows_of(n=4, count=4):
    """Prompts and responses of different lengths."""
    return [
        {
            "prompt": words(1 + i, i),
            "chosen": " " + words(2 + 3 * (i % 2), 50 + i),
            "rejected": " " + words(6 - i, 90 + i),
            "n": n,
            "beta": bonbon_beta(n),
        }
        for i in range(count)
    ]


@pytest.fixture
def trainer_of(tmp_path):
    def make(policy, rows=None, config=None, **options):
        own = dict(per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, report_to=[])
        own |= dict(save_strategy="no", bf16=False, gradient_checkpointing=False, use_cpu=True, disable_tqdm=True)
        return BonbonTrainer(
            policy,
            args=DPOConfig(str(tmp_path / "policy"), **own | (config or {})),
            train_dataset=Dataset.from_list(rows_of() if rows is None else rows),
            **{"processing_class": tiny_tokenizer("llama")} | options,
        )

    return make


def loss_of(trainer):
    (batch,) = trainer.get_train_dataloader()
    return trainer.compute_loss(trainer.model, batch)


def log_probability(model, prompt, response):
    """Of a response and its end, token by token, without padding."""
    tokenizer = tiny_tokenizer("llama")
    whole = tokenizer(f"{prompt}{response}</s>").input_ids
    logits = model(torch.tensor([whole])).logits[0].double()
    begin = len(tokenizer(prompt).input_ids)
    return sum(logits[at - 1].log_softmax(0)[whole[at]] for at in range(begin, len(whole)))


def expected_loss(policy, reference, rows, alpha):
    losses = []
    for row in rows:
        own = {side: log_probability(policy, row["prompt"], row[side]) for side in ("chosen", "rejected")}
        with torch.no_grad():
            base = {side: log_probability(reference, row["prompt"], row[side]) for side in ("chosen", "rejected")}
        difference = (own["chosen"] - base["chosen"]) - (own["rejected"] - base["rejected"])
        target = (row["n"] - 1) * sum(1 / k for k in range(1, row["n"]))
        losses.append(alpha * -own["chosen"] + (1 - alpha) * (difference - target) ** 2)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("alpha", [ALPHA, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 8])
def test_the_loss_and_its_gradient_are_of_summed_log_probabilities(trainer_of, n, alpha):
    """Of prompts and responses of different lengths in one padded batch."""
    base, rows = a_policy(), rows_of(n)
    trainer = trainer_of(moved(a_policy()), rows, ref_model=a_policy(), alpha=alpha)
    loss = loss_of(trainer)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    expected = expected_loss(trainer.model, base, rows, alpha)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE[torch.float32])
    scale = max(parameter.grad.abs().max() for parameter in trainer.model.parameters())
    for name, parameter in trainer.model.named_parameters():
        error = (found[name] - parameter.grad).abs().max()
        assert error <= RELATIVE[torch.float32] * scale, name


def fresh_adapter(trainer_of, folder, config):
    return trainer_of(a_policy(), config=config, peft_config=LORA), a_policy()


def trained_adapter(trainer_of, folder, config):
    """What it was before is the reference, and not the model beneath it."""
    adapter = moved(get_peft_model(a_policy(), LORA))
    return trainer_of(copy.deepcopy(adapter), config=config), adapter


def whole_model(trainer_of, folder, config):
    return trainer_of(a_policy(), config=config, ref_model=a_policy()), a_policy()


def whole_model_of_a_folder(trainer_of, folder, config):
    a_policy().save_pretrained(folder)
    return trainer_of(AutoModelForCausalLM.from_pretrained(folder), config=config), a_policy()


@pytest.mark.parametrize("precomputed", [False, True])
@pytest.mark.parametrize("made", [fresh_adapter, trained_adapter, whole_model, whole_model_of_a_folder])
def test_the_reference_is_the_policy_before_training(trainer_of, tmp_path, made, precomputed):
    trainer, reference = made(trainer_of, tmp_path / "base", {"precompute_ref_log_probs": precomputed})
    moved(trainer.model)
    expected = expected_loss(trainer.model, reference, rows_of(), ALPHA).item()
    assert loss_of(trainer).item() == pytest.approx(expected, rel=RELATIVE[torch.float32])
    still = expected_loss(reference, reference, rows_of(), ALPHA).item()
    assert abs(expected - still) > 100 * RELATIVE[torch.float32] * expected  # or the reference could be the policy


def test_a_step_tells_best_from_worst(trainer_of):
    """The log-ratios begin at zero, below their target, so that the best gains on the worst."""
    trainer = trainer_of(a_policy(), config={"max_steps": 4}, ref_model=a_policy())
    trainer.train()
    differences = [
        log["log_ratios/chosen"] - log["log_ratios/rejected"]
        for log in trainer.state.log_history
        if "log_ratios/chosen" in log
    ]
    assert differences[0] == pytest.approx(0, abs=1e-4)
    assert differences == sorted(differences)
    assert differences[-1] > 0.1


def test_accumulated_batches_are_one_batch(trainer_of):
    """A step of 4 pairs, and of 4 times 1 pair."""
    weights = []
    for size, times in ((4, 1), (1, 4)):
        config = dict(per_device_train_batch_size=size, gradient_accumulation_steps=times, max_steps=1)
        config |= dict(optim="sgd", max_grad_norm=0.0, learning_rate=1e-4)
        trainer = trainer_of(a_policy(), config=config, ref_model=a_policy())
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
    start = torch.cat([parameter.detach().flatten() for parameter in a_policy().parameters()])
    steps = [one - start for one in weights]
    assert steps[0].abs().max() > 1e-4
    # What is left of a step of 1e-3 in weights of about 1 in float32.
    torch.testing.assert_close(*steps, rtol=1e-3, atol=1e-6)


def test_of_conversations_the_answers_are_trained(trainer_of):
    """By the chat template of the policy's tokenizer, as they stand in the rows of `bonbon_rows`."""
    row = {"prompt": [{"role": "user", "content": "above"}], "beta": bonbon_beta(2)}
    row |= {"chosen": [{"role": "assistant", "content": "again air"}]}
    row |= {"rejected": [{"role": "assistant", "content": "all"}]}
    template = "{% for m in messages %}{{ 'a' if m.role == 'user' else 'able' }} {{ m.content }} </s>{% endfor %}"
    tokenizer = tiny_tokenizer("llama", template + "{% if add_generation_prompt %}able {% endif %}")
    trainer = trainer_of(a_policy(), [row], ref_model=a_policy(), processing_class=tokenizer)
    (batch,) = trainer.get_train_dataloader()
    scored = [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)]
    assert tokenizer.batch_decode(scored) == ["again air </s>", "all </s>"]
    assert loss_of(trainer).isfinite()


def test_a_mixture_of_experts_keeps_its_load_balancing(trainer_of):
    made = [a_policy("qwen3_moe", router_aux_loss_coef=0.5) for _ in range(2)]
    trainer = trainer_of(made[0], ref_model=made[1])
    whole = loss_of(trainer).item()
    trainer.aux_loss_enabled = False
    (batch,) = trainer.get_train_dataloader()
    routed = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True)
    assert whole == pytest.approx(loss_of(trainer).item() + 0.5 * routed.aux_loss.item(), rel=1e-5)


def test_evaluation_tells_the_same_loss_and_gives_metrics_their_logits(trainer_of):
    seen = []
    trainer = trainer_of(
        moved(a_policy()),
        ref_model=a_policy(),
        eval_dataset=Dataset.from_list(rows_of()),
        compute_metrics=lambda given: seen.append(given.predictions.shape) or {},
    )
    told = trainer.evaluate()
    assert told["eval_loss"] == pytest.approx(loss_of(trainer).item(), rel=1e-5)
    assert told["eval_loss/ipo"] > 0
    assert seen[0][-1] == len(WORDS) + 4


def test_the_model_card_names_the_method(trainer_of, tmp_path):
    trainer = trainer_of(a_policy(), ref_model=a_policy())
    trainer.create_model_card("policy")
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "trained with BoNBoN" in card
    assert "2406.00832" in card
    assert "Direct Preference" not in card


@pytest.mark.parametrize(
    "config",
    [
        {"beta": 0.5},
        {"loss_type": ["ipo"]},
        {"loss_type": ["sft", "ipo"], "loss_weights": [0.005, 0.995]},
        {"ld_alpha": 0.5},
        {"label_smoothing": 0.1},
        {"f_divergence_type": "forward_kl"},
        {"use_weighting": True},
        {"sync_ref_model": True},
    ],
)
def test_options_of_other_losses_are_refused(trainer_of, config):
    with pytest.raises(InputError, match=r"DPOConfig's \w+ is of another loss than BoNBoN's"):
        trainer_of(a_policy(), config=config, ref_model=a_policy())


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (rows_of(4) + rows_of(8), {}, "rows of 2 different beta: train on the rows of one n at a time"),
        ([{"prompt": "a", "chosen": "able", "rejected": "act"}], {}, "with the column beta"),
        ([row | {"beta": 0.0} for row in rows_of()], {}, "beta must be a positive number, not 0.0"),
        ([row | {"beta": "1/2"} for row in rows_of()], {}, "beta must be a positive number, not '1/2'"),
        (rows_of(), {"alpha": 1.5}, "alpha must be from 0 to 1, not 1.5"),
        (rows_of(), {"alpha": math.nan}, "alpha must be from 0 to 1, not nan"),
    ],
)
def test_rows_and_weights_that_cannot_be_are_refused(trainer_of, rows, options, message):
    with pytest.raises(InputError, match=message):
        trainer_of(a_policy(), rows, **options)


def test_the_policy_wins_against_what_it_was(trainer_of):
    """By a score that a tiny policy can learn: which words a response has."""
    tokenizer, base, n = tiny_tokenizer("llama"), a_policy(), 4
    prompts = [words(2, i) for i in range(8)]
    weights = torch.randn(len(WORDS) + 4, generator=torch.Generator().manual_seed(2)).log_softmax(0)

    def sampled(policy, count, seed):
        """Tokens of `count` responses to each prompt."""
        ids = tokenizer(prompts, return_tensors="pt").input_ids.repeat_interleave(count, 0)
        options = dict(max_new_tokens=4, min_new_tokens=4, suppress_tokens=[0, 1, 2, 3], do_sample=True, top_k=0)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return policy.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :]

    draws = sampled(base, 16 * n, 0).view(len(prompts) * 16, n, 4)
    candidates = [
        {
            "prompt": prompts[i // 16],
            "responses": [f" {text}" for text in tokenizer.batch_decode(one)],
            "log_probabilities": weights[one].sum(1).tolist(),
        }
        for i, one in enumerate(draws)
    ]
    rm = BayesianRewardModel(tiny_adapter("llama"), tokenizer).fit(tiny_pairs(), rank=4)
    rows = bonbon_rows(rm, candidates, "log_probability")
    config = dict(max_steps=60, per_device_train_batch_size=16, learning_rate=3e-3)
    trainer = trainer_of(a_policy(), rows, config, ref_model=base)
    trainer.train()
    ours, theirs = (
        weights[sampled(policy.eval(), 100, seed)].sum(1) for seed, policy in enumerate((trainer.model, base), 1)
    )
    # Of N independent comparisons of equals the share that is won has a standard error of at most 1 / (2 √N).
    rate = ((ours > theirs).double() + 0.5 * (ours == theirs)).mean().item()
    assert rate > 0.5 + 3 * 0.5 / len(ours) ** 0.5, rate
