"""Projector and answers: counts of image tokens, the loss, decoding in batches."""

import pytest
import torch
import torch.nn.functional as F
from tiny_language import tiny_answerer

from uniflow.core.specs import EncoderOutput, FeatureSpec
from uniflow.features import BlankSource
from uniflow.language import Projector, ScratchLM, Turn, normalized
from uniflow.language.collate import IGNORE, collate_prompts
from uniflow.language.models import scene_words

SPEC = FeatureSpec(4, 8, 2, 0, 64)


def features(rows, columns, count=2):
    maps = torch.randn(count, rows * columns, 4, generator=torch.Generator().manual_seed(0))
    return EncoderOutput((maps, 2 * maps), (maps[:, :0],) * 2, (rows, columns))


@pytest.mark.parametrize(
    ("grid", "merge", "count"), [((27, 27), 1, 729), ((27, 27), 2, 196), ((4, 6), 2, 6), ((3, 5), 4, 2)]
)
def test_the_number_of_image_tokens_comes_from_the_grid(grid, merge, count):
    assert Projector(SPEC, 16, merge)(features(*grid)).shape == (2, count, 16)


def test_merging_puts_neighbours_side_by_side():
    projector = Projector(SPEC, 16, merge=2, norm=False)
    projector.layers = torch.nn.Identity()
    given = features(2, 4)
    merged = projector(given)
    image = given.feature_map(0)  # (B, D, 2, 4)
    corner = torch.stack([image[:, :, 0, 0], image[:, :, 0, 1], image[:, :, 1, 0], image[:, :, 1, 1]], dim=2)
    torch.testing.assert_close(merged[:, 0, :16], corner.flatten(1))


def test_the_norm_changes_the_tokens():
    torch.manual_seed(0)
    normed = Projector(SPEC, 16)
    plain = Projector(SPEC, 16, norm=False)
    plain.load_state_dict({k: v for k, v in normed.state_dict().items() if not k.startswith("layers.0")})
    assert not torch.allclose(normed(features(2, 2)), plain(features(2, 2)))


def prompts_of(answerer, *turns):
    return [answerer.prompts.training([Turn(f"<image> {q}", a)]) for q, a in turns]


PAIRS = (("How many objects are there?", "3"), ("What color is the star?", "red"))


def test_729_features_do_not_go_into_728_places():
    answerer = tiny_answerer(SPEC)
    batch = collate_prompts(prompts_of(answerer, *PAIRS), [0, 1], 728, 0)
    with pytest.raises(ValueError, match=r"room for 1456 image tokens, the images have 1458"):
        answerer.loss(torch.randn(2, 729, 16), batch)


def test_the_loss_is_the_mean_over_trained_tokens_of_the_whole_logits():
    answerer = tiny_answerer(SPEC)
    tokens = torch.randn(2, 6, 16)
    batch = collate_prompts(prompts_of(answerer, *PAIRS), [1, 0], 6, 0)
    logits = answerer.lm(inputs_embeds=answerer.embeddings(tokens, batch), attention_mask=batch.mask).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(answerer.loss(tokens, batch), expected)
    one, two = (
        answerer.loss(tokens, collate_prompts(prompts_of(answerer, p), [i], 6, 0))
        for p, i in zip(PAIRS, (1, 0), strict=True)
    )
    torch.testing.assert_close(answerer.loss(tokens, batch, torch.tensor([0, 1])), (one + two) / 2)
    swapped = collate_prompts(prompts_of(answerer, *PAIRS), [0, 1], 6, 0)
    assert not torch.allclose(answerer.loss(tokens, swapped), expected)  # each prompt sees its own image


def test_text_alone_gives_the_projector_a_gradient_of_zero():
    answerer = tiny_answerer(SPEC, tune="frozen")
    batch = collate_prompts([answerer.prompts.training([Turn("How many ?", "3")])], [0], 6, 0)
    answerer.loss(answerer.projector(features(2, 3, 1)), batch).backward()
    assert all(p.grad is not None and not p.grad.any() for p in answerer.projector.parameters())


def test_answers_do_not_depend_on_the_batch_and_are_those_without_a_cache():
    torch.manual_seed(0)
    answerer = tiny_answerer(SPEC)
    for weight in answerer.lm.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    tokens = torch.randn(2, 6, 16)
    asked = [answerer.prompts.asking([Turn(f"<image> {q}")]) for q in ("Is there a red star?", "How many?", "star")]
    together = answerer.answers(tokens, asked, [0, 1, 0], 5)
    assert len(set(together)) > 1
    assert together == answerer.answers(tokens, asked, [0, 1, 0], 5, batch_size=1)
    for prompt, image, answer in zip(asked, [0, 1, 0], together, strict=True):
        batch = collate_prompts([prompt], [image], 6, 0, side="left")
        inputs, ids = answerer.embeddings(tokens, batch), []
        while len(ids) < 5 and (not ids or ids[-1] != answerer.tokenizer.eos_token_id):
            ids.append(int(answerer.lm(inputs_embeds=inputs).logits[0, -1].argmax()))
            new = answerer.lm.get_input_embeddings()(torch.tensor([[ids[-1]]]))
            inputs = torch.cat([inputs, new], dim=1)
        assert answerer.tokenizer.decode(ids, skip_special_tokens=True).strip() == answer
    assert answerer.answers(tokens, asked, [0, 1, 0], 1) != together  # max_new_tokens


@pytest.mark.parametrize(
    ("answer", "expected"), [("The red STAR.", "red star"), ("two", "2"), (" an  arrow!", "arrow"), ("yes", "yes")]
)
def test_normalisation(answer, expected):
    assert normalized(answer) == expected


def test_adapters_and_projector_are_all_that_is_trained():
    pytest.importorskip("peft")
    answerer = tiny_answerer(SPEC, tune="lora", lora_rank=2, lora_alpha=4.0, lora_targets=["q_proj"])
    names = {name for name, p in answerer.named_parameters() if p.requires_grad}
    assert len([n for n in names if n.startswith("adapters.")]) == 2
    assert all(n.startswith(("adapters.", "projector.")) for n in answerer.state_dict())
    batch = collate_prompts(prompts_of(answerer, *PAIRS), [0, 1], 6, 0)
    answerer.loss(answerer.projector(features(2, 3)), batch).backward()
    assert any(p.grad.any() for p in answerer.adapters.values())
    assert all(not p.requires_grad for n, p in answerer.lm.named_parameters() if "lora_" not in n)


def test_the_vocabulary_of_scenes_covers_other_scenes():
    lm, tokenizer = ScratchLM(16, 1, 2).load()
    assert len(tokenizer) == len(scene_words()) + 4
    assert tokenizer.unk_token_id not in tokenizer("Is the red star in front of the white semicircle?").input_ids
    assert tokenizer.unk_token_id in tokenizer("giraffe").input_ids
    assert lm.config.vocab_size == len(tokenizer)


def test_settings_of_a_model_from_scratch_change_it(tmp_path):
    (tmp_path / "words.txt").write_text("giraffe, zebra")

    def count(**kwargs):
        return sum(
            p.numel() for p in ScratchLM(**{"width": 16, "depth": 1, "heads": 2, **kwargs}).load()[0].parameters()
        )

    assert len({count(), count(width=32), count(depth=2), count(texts=str(tmp_path / "words.txt"))}) == 4
    assert not torch.equal(*(ScratchLM(16, 1, 2, seed=s).load()[0].lm_head.weight for s in (0, 1)))
    with pytest.raises(ValueError, match=r"ScratchLM.width 20 is not a multiple of 2 \* heads = 8"):
        ScratchLM(20)
    with pytest.raises(ValueError, match=r"ScratchLM.texts: .* cannot be read"):
        ScratchLM(16, texts=str(tmp_path / "none")).load()


def test_blank_features_give_equal_tokens():
    source = BlankSource(8, 4, 2)
    tokens = Projector(source.spec, 16)(source(torch.rand(2, 3, 16, 16)))
    assert torch.equal(tokens[0], tokens[1])
