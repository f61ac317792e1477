"""Ensembles of adapters on one base, and of models of their own."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words
from whole_rows import whole_rows

from bayesrm_fast import BayesianRewardModel, InputError, RewardEnsemble
from bayesrm_fast.ensemble import EnsembleScores

TEXTS = [words(3, 1)] * 5, [words(4 + i, i) for i in range(5)]


@pytest.fixture(scope="module", params=[True, False], ids=["bayesian", "means alone"])
def folders(request, base_folder, tmp_path_factory):
    """Three adapters of one base with other weights and heads each, with posteriors or without."""
    from transformers import AutoModelForSequenceClassification

    found = []
    for seed in range(3):
        base = AutoModelForSequenceClassification.from_pretrained(base_folder)
        model = tiny_adapter("llama", base=base, r=2 + seed, modules_to_save=["score"])
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        rm = BayesianRewardModel(model, tiny_tokenizer("llama"))
        if request.param:
            rm.fit(tiny_pairs(), structure=["kfac", "ekfac", "ggn"][seed], rank=4, prior_precision=0.5)
        found.append(tmp_path_factory.mktemp("members") / f"{seed}")
        rm.save_pretrained(found[-1])
    return found


def test_members_on_one_base_score_as_they_do_alone(folders):
    ensemble = RewardEnsemble.from_pretrained(folders, device="cpu")
    assert len({id(member.model) for member in ensemble.members}) == 1
    found = ensemble.score(*TEXTS)
    assert found.members.shape == (3, 5)
    alone = [BayesianRewardModel.from_pretrained(folder, device="cpu") for folder in folders]
    for mean, rm in zip(found.members, alone, strict=True):
        torch.testing.assert_close(mean, rm.rewards(*TEXTS), rtol=1e-5, atol=1e-6)
    if alone[0].posterior is not None:
        within = torch.stack([rm.score(*TEXTS).variance for rm in alone]).mean(0)
        torch.testing.assert_close(found.within, within, rtol=1e-4, atol=0)
    else:
        assert torch.equal(found.within, torch.zeros(5))
    own = RewardEnsemble(alone).score(*TEXTS)
    torch.testing.assert_close(own.members, found.members, rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was_found(folders):
    ensemble = RewardEnsemble.from_pretrained(folders, device="cpu")
    model = ensemble.members[0].model
    first = next(parameter for name, parameter in model.named_parameters() if "lora_A.default" in name)
    first.requires_grad_(True)

    def state():
        return list(model.active_adapters), {n for n, p in model.named_parameters() if p.requires_grad}

    before = state()
    ensemble.score(*TEXTS)
    assert state() == before
    with pytest.raises(InputError):
        ensemble.score([], [])
    assert state() == before


def test_objectives_are_those_of_their_formulas():
    members = torch.tensor([[1.0, 4.0], [2.0, 4.0], [6.0, 1.0]])
    found = EnsembleScores(members, torch.tensor([1.0, 0.0]), *whole_rows(2))
    population = torch.tensor([14.0 / 3, 2.0])
    torch.testing.assert_close(found.between, population)
    torch.testing.assert_close(found.variance, population + torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(found.scores("mean"), torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(found.scores("worst"), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(found.scores("uncertainty"), 3.0 - 0.5 * population)
    torch.testing.assert_close(found.scores("uncertainty", 2.0), 3.0 - 2.0 * population)
    torch.testing.assert_close(found.scores("variance", 1.0), 3.0 - found.variance)
    torch.testing.assert_close(found.scores("std", 1.0), 3.0 - found.std)
    for bad in (("best", 1.0), ("std", -1.0)):
        with pytest.raises(InputError):
            found.scores(*bad)


def test_the_total_variance_is_the_mixtures():
    generator = torch.Generator().manual_seed(0)
    means, variances = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.5, 2.0, 1.0])
    draws = means + variances.sqrt() * torch.randn(200_000, 3, generator=generator)
    found = EnsembleScores(means[:, None], variances.mean()[None], *whole_rows(1))
    assert float(found.variance) == pytest.approx(float(draws.flatten().var()), rel=0.01)


@pytest.mark.parametrize("rule", ["mean", "worst", "uncertainty"])
def test_best_of_n(folders, rule):
    ensemble = RewardEnsemble.from_pretrained(folders, device="cpu")
    best = ensemble.best_of_n(TEXTS[0][0], TEXTS[1], rule)
    scores = ensemble.score(*TEXTS).scores(rule)
    assert best.index == int(scores.argmax())
    assert best.response == TEXTS[1][best.index]
    equal = ensemble.best_of_n(TEXTS[0][0], [TEXTS[1][0]] * 3, rule)
    assert (equal.index, equal.scores.tolist()) == (0, [0.0] * 3)
    with pytest.raises(InputError, match="responses must be a list, not null"):
        ensemble.best_of_n(TEXTS[0][0], None, rule)


def test_what_makes_no_ensemble(folders, tmp_path):
    with pytest.raises(InputError, match="at least two"):
        RewardEnsemble.from_pretrained(folders[:1], device="cpu")
    with pytest.raises(InputError, match="at least two"):
        RewardEnsemble([])
    other = shutil.copytree(folders[1], tmp_path / "other")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "another"}))
    with pytest.raises(InputError, match="base model another"):
        RewardEnsemble.from_pretrained([folders[0], other], device="cpu")
    (other / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"not a peft adapter|neither adapter_config\.json nor"):
        RewardEnsemble.from_pretrained([folders[0], other], device="cpu")
    if (folders[1] / "posterior.json").exists():
        rm = BayesianRewardModel.from_pretrained(folders[1], device="cpu")
        rm.posterior.record = replace(rm.posterior.record, output_weights=[2.0])
        weighted = tmp_path / "weighted"
        rm.save_pretrained(weighted)
        with pytest.raises(InputError, match="output_weights="):
            RewardEnsemble.from_pretrained([folders[0], weighted], device="cpu")
    some = [BayesianRewardModel.from_pretrained(folder, device="cpu") for folder in folders[:2]]
    some[0].posterior = None if some[1].posterior is not None else some[0].fit(tiny_pairs(), rank=4).posterior
    with pytest.raises(InputError, match="some have none"):
        RewardEnsemble(some)


def test_an_ensemble_of_models_as_they_are(base_folder):
    members = [
        BayesianRewardModel(tiny_base("llama"), tiny_tokenizer("llama"), virtual_rank=2).fit(
            tiny_pairs(seed=seed), prior_precision=1.0
        )
        for seed in (0, 50)
    ]
    found = RewardEnsemble(members).score(*TEXTS)
    expected = torch.stack([member.score(*TEXTS).variance for member in members]).mean(0)
    torch.testing.assert_close(found.within, expected)
    with pytest.raises(InputError, match="only a model with a LoRA adapter"):
        members[0].with_adapter(base_folder, "second")
