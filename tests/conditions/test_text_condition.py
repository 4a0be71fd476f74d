"""Text as a condition: states of a frozen encoder, what stands for no text, and what is saved of it."""

import pytest
import torch
from tiny_language import write_lm
from torch._subclasses.fake_tensor import FakeTensorMode

from uniflow.conditions import TextCondition, join
from uniflow.conditions import text as module
from uniflow.core.part import build_part, part_config

TEXTS = ["what color is the star", "blue", "How many"]
KEEP = torch.zeros(3, dtype=torch.bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def condition(folder):
    torch.manual_seed(0)
    return TextCondition(str(folder), width=8, token_width=6, max_tokens=5)


def test_each_text_has_its_own_states_whatever_its_batch(condition):
    told = condition(TEXTS, KEEP)
    assert (condition.spec.width, condition.spec.token_width) == (8, 6)
    assert told.tokens.shape[::2] == (3, 6)
    assert told.mask.sum(dim=1).tolist() == [5, 2, 3]  # <bos> and the words, at most 5
    for row, text in enumerate(TEXTS):
        alone = condition([text], KEEP[:1])
        count = int(told.mask[row].sum())
        torch.testing.assert_close(alone.vector[0], told.vector[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.tokens[0], told.tokens[row, :count], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(told.vector[0], told.vector[1], atol=1e-3)


@pytest.mark.parametrize("change", [{"max_tokens": 2}, {"dtype": "bfloat16"}], ids=str)
def test_every_argument_of_the_encoder_changes_what_is_told(condition, folder, change):
    other = TextCondition(str(folder), **{"width": 8, "token_width": 6, "max_tokens": 5, **change})
    other.load_state_dict(condition.state_dict())
    assert not torch.equal(other(TEXTS, KEEP).vector, condition(TEXTS, KEEP).vector)


def test_the_null_token_is_learned_and_stands_for_no_text(condition):
    nothing = condition(None, ~KEEP)
    dropped = condition(TEXTS, ~KEEP)
    torch.testing.assert_close(dropped.vector, nothing.vector)
    assert dropped.mask.sum(dim=1).tolist() == nothing.mask.sum(dim=1).tolist() == [1, 1, 1]
    torch.testing.assert_close(dropped.tokens[:, :1], nothing.tokens)
    assert torch.equal(nothing.tokens[0, 0], condition.null_token)
    some = condition(TEXTS, torch.tensor([False, True, False]))
    (some.vector.sum() + some.tokens.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in condition.parameters())


def test_both_halves_of_guidance_have_one_length(condition):
    both = join(condition(TEXTS, KEEP), condition(None, ~KEEP))
    assert both.tokens.shape == (6, 5, 6)
    assert both.mask.sum(dim=1).tolist() == [5, 2, 3, 1, 1, 1]


def test_a_text_is_computed_once_as_long_as_it_is_kept(condition, monkeypatch):
    asked = []
    compute = condition.encoder._compute
    monkeypatch.setattr(
        condition.encoder, "_compute", lambda texts, device: asked.extend(texts) or compute(texts, device)
    )
    with torch.inference_mode():  # as in validation; training goes on with the same states
        first = condition([*TEXTS, TEXTS[0]], torch.zeros(4, dtype=torch.bool)).vector.clone()
    again = condition(TEXTS, KEEP).vector
    again.sum().backward()
    torch.testing.assert_close(again, first[:3].clone())
    assert asked == TEXTS
    monkeypatch.setattr(module, "CACHED_TOKENS", 3)
    condition(["red"], KEEP[:1])
    condition(TEXTS[2:], KEEP[:1])
    assert asked == [*TEXTS, "red", TEXTS[2]]


def test_only_its_own_weights_are_saved_with_the_hash_of_the_encoder(condition, folder, tmp_path, monkeypatch):
    told = condition(TEXTS, KEEP)
    config = part_config(condition)
    assert config["init_args"] | {"name": str(folder), "text_width": 16} == config["init_args"]
    assert len(config["init_args"]["text_hash"]) == 12
    names = {"norm.weight", "norm.bias", "null_token", "null_vector"}
    names |= {f"{name}_proj.{kind}" for name in ("token", "vector") for kind in ("weight", "bias")}
    assert condition.state_dict().keys() == names
    again = build_part(config, TextCondition)
    again.load_state_dict(condition.state_dict())
    torch.testing.assert_close(again(TEXTS, KEEP).tokens, told.tokens)
    seen = {}
    monkeypatch.setattr(module, "read_text_model", lambda *args, local_only, **kwargs: seen.update(local=local_only))
    with pytest.raises(TypeError):
        build_part(config, TextCondition)(TEXTS, KEEP)
    assert seen == {"local": True}


def test_a_plan_asks_for_shapes_alone(condition):
    with FakeTensorMode(allow_non_fake_inputs=True):
        for values in (condition.example(2), None):
            told = condition(values, torch.zeros(2, dtype=torch.bool))
            assert told.tokens.shape == (2, 1 if values is None else 5, 6)
    assert condition.encoder.text_hash is None  # no weights were read


def test_another_encoder_is_refused(condition, folder):
    other = TextCondition(str(folder), text_hash="0123456789ab")
    with pytest.raises(ValueError, match=r"has the weights \w{12}, this condition was trained with 0123456789ab"):
        other(TEXTS, KEEP)
    with pytest.raises(ValueError, match="no text encoder can be read from 'missing'"):
        TextCondition("missing")
    with pytest.raises(ValueError, match="reads texts, got 3"):
        condition([3], KEEP[:1])


@pytest.mark.parametrize("kind", ["clip", "t5", "bert"])
def test_the_part_that_reads_text_is_taken(folder, tmp_path, kind):
    import transformers

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vocabulary = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if kind == "clip":
        vision = {**small, "image_size": 8, "patch_size": 4}
        config = transformers.CLIPConfig(text_config={**small, **vocabulary}, vision_config=vision, projection_dim=8)
        model = transformers.CLIPModel(config)
    elif kind == "t5":
        config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=64)
        model = transformers.T5Model(config)
    else:
        model = transformers.BertModel(transformers.BertConfig(**small, **vocabulary))
    model.save_pretrained(tmp_path)
    for file in folder.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    told = TextCondition(str(tmp_path), width=8, token_width=6)(TEXTS, KEEP)
    assert told.mask.sum(dim=1).tolist() == [6, 2, 3]
    assert not torch.allclose(told.vector[0], told.vector[1], atol=1e-4)
