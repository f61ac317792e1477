"""Virtual adapters on disk and from the command line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_adapter, tiny_base, tiny_pairs, tiny_tokenizer, words
from transformers import AutoModel, AutoModelForSequenceClassification
from typer.testing import CliRunner

from bayesrm_fast import BayesianRewardModel, InputError, RewardEnsemble
from bayesrm_fast.cli.main import app

PROMPTS, RESPONSES = [words(3, 1)] * 3, [words(4 + i, i) for i in range(3)]


def load(folder, **options):
    return BayesianRewardModel.from_pretrained(folder, device="cpu", **options)


def scores(rm):
    result = rm.score(PROMPTS, RESPONSES)
    return torch.stack([result.mean, result.variance])


@pytest.fixture(scope="module")
def saved(base_folder, tmp_path_factory):
    """Virtual adapters and a posterior of `base_folder`; not to be written to."""
    folder = tmp_path_factory.mktemp("virtual") / "saved"
    load(base_folder, virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit(folder, **changes):
    path = folder / "virtual_adapter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_saved_model_gives_the_same_scores_and_holds_no_model(base_folder, tmp_path):
    rm = load(base_folder, virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0)
    rm.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    torch.testing.assert_close(scores(again), scores(rm), rtol=0, atol=0)
    assert again.posterior.record == rm.posterior.record
    downs = {id(tap.down) for tap in again.virtual.taps}
    assert len(downs) == len({id(tap.down) for tap in rm.virtual.taps}) < len(again.virtual.taps)
    names = {file.name for file in (tmp_path / "saved").iterdir()}
    assert {"virtual_adapter.json", "virtual_adapter.safetensors", "posterior.json", "posterior.safetensors"} <= names
    assert not names & {"model.safetensors", "adapter_model.safetensors", "config.json"}


def test_saving_into_the_models_own_folder(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "model")
    rm = load(folder, virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0)
    rm.save_pretrained(folder)
    moved = folder.rename(tmp_path / "moved")
    torch.testing.assert_close(scores(load(moved)), scores(rm), rtol=0, atol=0)


def test_beside_lora_both_are_saved(adapter_folder, tmp_path):
    rm = load(adapter_folder, virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0)
    rm.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.adapter == "default"
    torch.testing.assert_close(scores(again), scores(rm), rtol=0, atol=0)


def test_a_rank_that_is_given_starts_anew(saved):
    rm = load(saved, virtual_rank=3)
    assert rm.posterior is None
    rm.fit(tiny_pairs(), prior_precision=1.0)
    assert {site.r for site in rm.posterior.sites} == {3}


def test_bfloat16_is_the_same_checkpoint(saved):
    rm = load(saved, dtype=torch.bfloat16)
    torch.testing.assert_close(scores(rm)[1], scores(load(saved))[1], rtol=0.25, atol=0)


def test_a_fit_on_other_pairs_makes_other_directions(base_folder):
    rm = load(base_folder, virtual_rank=2).fit(tiny_pairs(), prior_precision=1.0)
    before = rm.virtual.taps[0].down
    rm.fit(tiny_pairs(seed=50), prior_precision=1.0)
    assert not torch.allclose(rm.virtual.taps[0].down, before)


def test_other_weights_are_refused(base_folder, copied, tmp_path):
    other = shutil.copytree(base_folder, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    edit(copied, model=str(other))
    with pytest.raises(InputError, match="made for other weights"):
        load(copied)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "virtual_adapter.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "virtual_adapter.safetensors").write_bytes(b"x"), "truncated or belongs to another"),
        (lambda f: (f / "virtual_adapter.json").write_text("{"), "not valid JSON"),
        (lambda f: edit(f, format=99), "of format 1"),
        (lambda f: edit(f, model="no/such-model"), "cannot be loaded"),
        (lambda f: edit(f, layers={"model.nothing": "model.nothing"}), "no linear layer model.nothing|no readable"),
        (lambda f: edit(f, virtual_rank=7), "is \\[2, "),
    ],
)
def test_damaged_folders_are_named(copied, damage, message):
    damage(copied)
    with pytest.raises(InputError, match=message):
        load(copied)


def test_a_posterior_of_other_directions_is_refused(copied, base_folder, tmp_path):
    other = tmp_path / "other"
    load(base_folder, virtual_rank=2).fit(tiny_pairs(seed=50), prior_precision=1.0).save_pretrained(other)
    for file in ("virtual_adapter.json", "virtual_adapter.safetensors"):
        shutil.copy(other / file, copied / file)
    with pytest.raises(InputError, match="fitted on other adapter weights"):
        load(copied)


def test_nothing_is_saved_before_a_fit(base_folder, tmp_path):
    with pytest.raises(InputError, match="call fit first"):
        load(base_folder, virtual_rank=2).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_model_from_nowhere_cannot_be_saved(tmp_path):
    rm = BayesianRewardModel(tiny_base("llama"), tiny_tokenizer("llama"), virtual_rank=2)
    rm.fit(tiny_pairs(), prior_precision=1.0)
    with pytest.raises(InputError, match="save it first"):
        rm.save_pretrained(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_no_reward_models(base_folder, tmp_path):
    AutoModel.from_pretrained(base_folder).save_pretrained(tmp_path / "headless")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "headless")
    with pytest.raises(InputError, match=r"lacks score\.weight"):
        load(tmp_path / "headless", virtual_rank=2)
    with pytest.raises(InputError, match="virtual_rank=8"):
        load(base_folder)
    with pytest.raises(InputError, match="cannot be loaded"):
        load("no/such-model", virtual_rank=2)


def test_remote_code_is_run_on_request_alone(base_folder, tmp_path):
    folder = shutil.copytree(base_folder, tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "of_its_own",
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForSequenceClassification": "own.OwnModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from torch import nn\n"
        "from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'of_its_own'\n"
        "class OwnModel(LlamaForSequenceClassification):\n"
        "    config_class = OwnConfig\n"
        "    def __init__(self, config):\n"
        "        LlamaPreTrainedModel.__init__(self, config)\n"
        "        self.num_labels = config.num_labels\n"
        "        self.model = LlamaModel(config)\n"
        "        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)\n"
        "        self.post_init()\n"
    )
    with pytest.raises(InputError, match="trust_remote_code=True"):
        load(folder, virtual_rank=2)
    rm = load(folder, virtual_rank=2, trust_remote_code=True).fit(tiny_pairs(), prior_precision=1.0)
    assert rm.virtual.taps


def test_an_ensemble_of_models_as_they_are(base_folder):
    members = [load(base_folder, virtual_rank=2).fit(tiny_pairs(seed=s), prior_precision=1.0) for s in (0, 50)]
    found = RewardEnsemble(members).score(PROMPTS, RESPONSES)
    expected = torch.stack([scores(member)[1] for member in members]).mean(0)
    torch.testing.assert_close(found.within, expected)
    with pytest.raises(InputError, match="only a model with a LoRA adapter"):
        members[0].with_adapter(base_folder, "second")


def test_the_command_line_fits_and_scores_a_model_as_it_is(base_folder, tmp_path):
    pairs, rows, out = tmp_path / "pairs.jsonl", tmp_path / "rows.jsonl", tmp_path / "fitted"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in tiny_pairs(20)))
    rows.write_text(json.dumps({"prompt": PROMPTS[0], "responses": RESPONSES}) + "\n")
    run = CliRunner()
    fit = ["fit", str(base_folder), str(pairs), "--virtual-rank", "2", "--virtual-targets", "q_proj"]
    refused = run.invoke(app, fit)
    assert isinstance(refused.exception, InputError)
    assert "--output is needed" in str(refused.exception)
    done = run.invoke(app, [*fit, "--output", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["virtual_rank"] == 2
    assert told["prior_chosen_by"] == "margins"
    assert told["virtual_layers"] == 2
    done = run.invoke(app, ["score", str(out), str(rows), str(tmp_path / "scores.jsonl")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "scores.jsonl").read_text())
    torch.testing.assert_close(torch.tensor(found["variance"]), scores(load(out))[1])
    assert run.invoke(app, ["info", str(out)]).exit_code == 0
    again = run.invoke(app, ["fit", str(out), str(pairs), "--structure", "kfac", "--prior-precision", "1", "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["structure"] == "kfac"
    unlabelled = run.invoke(app, ["fit", str(out), str(rows), "--unlabelled", "--json"])
    assert unlabelled.exit_code == 0, unlabelled.output
    told = json.loads(unlabelled.stdout)
    assert told["pairs"] == 2  # of three responses
    assert "log_evidence" not in told
    wrong = run.invoke(app, ["fit", str(out), str(pairs), "--virtual-targets", "q_proj"])
    assert "goes with --virtual-rank" in str(wrong.exception)


def test_unlabelled_candidates_give_the_posterior_of_their_pairs(base_folder, tmp_path):
    prompts = [words(3, 1)] * 3 + [words(4, 2)] * 2 + [words(5, 3)]
    responses = [words(3 + i, 20 + i) for i in range(6)]
    rm = load(base_folder, virtual_rank=2)
    with pytest.warns(UserWarning, match="1 prompt"):
        rm.fit_unlabelled(prompts, responses, prior_precision=1.0)
    assert rm.posterior.record.pairs == 3
    assert rm.posterior.record.log_likelihood is None
    with pytest.raises(InputError, match="nobody said"):
        rm.posterior.log_evidence()
    rm.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    torch.testing.assert_close(scores(again), scores(rm), rtol=0, atol=0)
    calibration = again.calibrate(tiny_pairs())
    assert again.posterior.prior_precision == calibration.prior_precision


def test_labels_do_not_matter_to_the_curvature(base_folder):
    a, b, prompt = words(6, 30), words(7, 31), words(3, 1)
    rm = load(base_folder, virtual_rank=2)
    rm.fit_unlabelled([prompt, prompt], [a, b], prior_precision=1.0)
    unlabelled = scores(rm)
    for chosen, rejected in ((a, b), (b, a)):
        rm.fit([{"prompt": prompt, "chosen": chosen, "rejected": rejected}], prior_precision=1.0)
        torch.testing.assert_close(scores(rm), unlabelled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "responses", "options", "message"),
    [
        (["a"], ["b"], dict(prior_precision=1.0), "nothing to compare"),
        (["a", "a"], ["b", "b"], dict(prior_precision=1.0), "nothing to compare"),
        (["a", "a"], ["b"], dict(prior_precision=1.0), "2 prompts but 1"),
        (["a", "a"], ["b", "c"], dict(prior_precision="evidence"), "give a number, or 'margins'"),
        (["a", "a"], ["b", "c"], dict(prior_precision=-1.0), "positive"),
    ],
)
def test_unlabelled_candidates_that_cannot_be_served(adapter_folder, prompts, responses, options, message):
    rm = load(adapter_folder)
    with pytest.raises(InputError, match=message):
        rm.fit_unlabelled(prompts, responses, **options)
    assert rm.posterior is None


def test_lora_takes_unlabelled_candidates_too():
    rm = BayesianRewardModel(tiny_adapter("bert"), tiny_tokenizer("bert"))
    rm.fit_unlabelled(
        [words(3, 1)] * 4, [words(3 + i, i) for i in range(4)], prior_precision=1.0, structure="kfac", rank=None
    )
    assert rm.posterior.record.pairs == 2


@pytest.mark.parametrize("architecture", ["roberta", "deberta-v2", "bert"])
def test_classifiers_with_a_dense_layer_or_a_pooler(architecture, tmp_path):
    tiny_base(architecture).save_pretrained(tmp_path / "model")
    tiny_tokenizer(architecture).save_pretrained(tmp_path / "model")
    rm = load(tmp_path / "model", virtual_rank=2)
    assert isinstance(rm.model, AutoModelForSequenceClassification._model_mapping[type(rm.model.config)])
    rm.fit(tiny_pairs(), prior_precision=1.0)
    rm.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(scores(load(tmp_path / "saved")), scores(rm), rtol=0, atol=0)
