"""Which tokens are trained, by hand-made conversations; BOS, cutting, system messages, boundaries."""

import pytest
from tiny_language import CHATML, PLAIN, STRICT, tokenizer
from tokenizers import Tokenizer, models

from uniflow.core.text_models import require_transformers
from uniflow.language import ChatTemplate, Prompts, TextTemplate, Turn
from uniflow.language.collate import IGNORE, collate_prompts
from uniflow.language.prompts import IMAGE_ID, PromptError

TURNS = [Turn("<image>\nwhat color is the star ?", "red"), Turn("How many ?", "3")]


def words(prompts, prompt):
    return ["<image>" if i == IMAGE_ID else prompts.tokenizer.decode([i]) for i in prompt.ids]


def trained(prompts, prompt):
    return [w for w, t in zip(words(prompts, prompt), prompt.trained, strict=True) if t]


def test_the_tokens_of_a_conversation_one_by_one():
    prompts = Prompts(tokenizer(), PLAIN)
    prompt = prompts.training(TURNS)
    text = "<bos> <image> what color is the star ? red <eos> How many ? 3 <eos>"
    assert " ".join(words(prompts, prompt)) == text
    assert prompt.trained == [False] * 8 + [True] * 2 + [False] * 3 + [True] * 2
    assert prompts.decoded(prompt).count("[[") == 2


@pytest.mark.parametrize("template", [CHATML, STRICT])
def test_answers_alone_are_trained_under_chat_templates(template):
    prompts = Prompts(tokenizer(template), ChatTemplate())
    prompt = prompts.training(TURNS)
    said = [w for w in trained(prompts, prompt) if w in ("red", "3")]
    assert said == ["red", "3"]
    assert not {"what", "many", "user", "system", "kind", "<image>"} & set(trained(prompts, prompt))
    asked = prompts.asking(TURNS[:1])
    assert prompt.ids[: len(asked)] == asked.ids  # training and answering see the same


def test_a_template_with_generation_marks_is_not_needed_and_one_bos_is_in_front():
    for template, chosen in ((STRICT, ChatTemplate()), (None, PLAIN), (None, TextTemplate("<bos>", "{}", " {}{eos}"))):
        prompts = Prompts(tokenizer(template), chosen)
        ids = prompts.training(TURNS).ids
        assert ids.count(prompts.tokenizer.bos_token_id) == 1
        assert ids[0] == prompts.tokenizer.bos_token_id


def test_two_bos_tokens_are_refused():
    prompts = Prompts(tokenizer(), TextTemplate("<bos><bos>", "{}", " {}{eos}"))
    with pytest.raises(PromptError, match="begins with two BOS tokens"):
        prompts.training(TURNS)


def test_a_system_message_where_the_template_takes_none_goes_into_the_first_question():
    strict = Prompts(tokenizer(STRICT), ChatTemplate("Be short"))
    text = strict.decoded(strict.training(TURNS))
    assert text.index("Be short") < text.index("what color")
    assert text.count("Be short") == 1
    plain = Prompts(tokenizer(CHATML), ChatTemplate("Be short"))
    assert "Be short" in plain.decoded(plain.asking(TURNS[:1]))
    assert "kind" not in plain.decoded(plain.asking(TURNS[:1]))  # instead of the template's own


def test_a_tokenizer_without_chat_template_is_refused():
    with pytest.raises(PromptError, match="has no chat template: set template to TextTemplate"):
        Prompts(tokenizer(), ChatTemplate()).training(TURNS)


def test_a_template_that_changes_earlier_answers_is_refused():
    fickle = "{% for m in messages %}{% if loop.last %}How many{% endif %} {{ m['content'] }}{% endfor %}"
    with pytest.raises(PromptError, match=r"answer 1 cannot be found"):
        Prompts(tokenizer(fickle), ChatTemplate()).training([Turn("is", "red"), Turn("is", "blue")])


def bpe():
    """Characters, but for ":r" and "d;", which reach over the boundaries of an answer."""
    vocabulary = {c: i for i, c in enumerate(["<e>", *"abcdefgr:;", ":r", "d;"])}
    raw = Tokenizer(models.BPE(vocabulary, [(":", "r"), ("d", ";")]))
    return require_transformers().PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<e>")


def test_tokens_that_reach_over_a_boundary():
    prompts = Prompts(bpe(), TextTemplate("", "{}:", "{};"))
    prompt = prompts.training([Turn("a", "red"), Turn("b", "g")])
    tokens = [prompts.tokenizer.decode([i]) for i in prompt.ids]
    assert tokens == ["a", ":r", "e", "d;", "b", ":", "g", ";"]
    # ":r" holds the answer's first letter, and "d;" its last one and the end.
    assert prompt.trained == [False, True, True, True, False, False, True, True]


def test_cutting_drops_whole_turns_first():
    prompts = Prompts(tokenizer(), PLAIN, max_tokens=12)
    prompt = prompts.training(TURNS)
    assert prompt.cut
    assert trained(prompts, prompt) == ["red", "<eos>"]
    assert not Prompts(tokenizer(), PLAIN, max_tokens=15).training(TURNS).cut


def test_a_single_turn_loses_the_end_of_its_answer_but_never_all_of_it():
    turn = [Turn("How many ?", "red red red")]
    prompts = Prompts(tokenizer(), PLAIN, max_tokens=6)
    assert trained(prompts, prompts.training(turn)) == ["red", "red"]
    with pytest.raises(PromptError, match=r"^a: the question alone has 4 tokens, and max_tokens is 4: nothing of"):
        Prompts(tokenizer(), PLAIN, max_tokens=4).training(turn, "a")


def test_an_image_is_not_cut_off():
    with pytest.raises(PromptError, match="its image stands after the 4 tokens"):
        Prompts(tokenizer(), PLAIN, max_tokens=4).training([Turn("what color is the <image>", "red")])


def test_an_image_named_twice_is_refused():
    with pytest.raises(PromptError, match=r"^a: <image> stands 2 times in it, and a sample has one image$"):
        Prompts(tokenizer(), PLAIN).training([Turn("<image> <image>", "red")], "a")


def test_a_sample_without_a_trained_token_is_refused_and_named():
    prompt = Prompts(tokenizer(), PLAIN).training([Turn("How many ?", "")])
    with pytest.raises(PromptError, match=r"^s7: not one token is trained: its answers are empty$"):
        collate_prompts([prompt], [0], 4, 0, names=["s7"])


def test_a_batch_expands_images_after_cutting_and_masks_labels():
    prompts = Prompts(tokenizer(), PLAIN, max_tokens=10)
    long, short = prompts.training(TURNS), prompts.training([Turn("is ?", "red")])
    batch = collate_prompts([long, short], [3, 1], image_tokens=5, pad_id=0)
    assert (batch.ids == IMAGE_ID).sum(1).tolist() == [5, 0]
    assert batch.ids.shape[1] == len(long) + 4
    assert batch.images.tolist() == [3, -1]
    assert batch.mask.sum(1).tolist() == [len(long) + 4, len(short)]
    assert (batch.labels != IGNORE).sum(1).tolist() == [2, 2]
    assert batch.labels[1, : len(short)].tolist()[-2:] == short.ids[-2:]
    assert batch.cut == 0.5
    assert batch.trained == pytest.approx(4 / (len(long) - 1 + len(short)))


def test_padding_is_on_the_left_for_answering():
    prompts = Prompts(tokenizer(), PLAIN)
    batch = collate_prompts([prompts.asking([Turn("is ?")]), prompts.asking(TURNS[:1])], [0, 1], 2, 0, side="left")
    assert batch.mask[0].tolist() == sorted(batch.mask[0].tolist())
    assert batch.mask[:, -1].tolist() == [1, 1]


def test_a_text_template_needs_a_place_for_its_text():
    with pytest.raises(ValueError, match=r"TextTemplate.answer must hold \{\} once"):
        TextTemplate(answer="yes")
    with pytest.raises(ValueError, match=r"TextTemplate.question must hold \{\} once"):
        TextTemplate(question="{}{}")


def test_a_template_without_questions_keeps_the_image():
    prompts = Prompts(tokenizer(), TextTemplate("", "", "{}\n"))
    assert words(prompts, prompts.training(TURNS)) == ["<bos>", "<image>", "red", "3"]
