"""A language model of some thousand weights, on disk, and tokenizers with chat templates."""

from pathlib import Path

from uniflow.language import Answerer, Projector, Prompts, ScratchLM, TextTemplate
from uniflow.language.models import word_tokenizer

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<s>system Be kind . <e>{% endif %}"
    "<s>{{ m['role'] }} {{ m['content'] }} <e>\n{% endfor %}{% if add_generation_prompt %}<s>assistant{% endif %}"
)
# Takes no system message, and begins with BOS.
STRICT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] }} {% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
WORDS = "what color is the star ? red blue How many 3 system user assistant Be kind . < > s e [ ] short"
PLAIN = TextTemplate("", "{}", " {}{eos}")


def tokenizer(chat_template=None):
    made = word_tokenizer(sorted(set(WORDS.split())))
    made.chat_template = chat_template
    return made


def tiny_answerer(spec, merge=1, tune="full", template=PLAIN, **kwargs):
    """An answerer over a Llama of width 16."""
    lm, words = ScratchLM(16, 1, 2).load()
    return Answerer(lm, Prompts(words, template), Projector(spec, 16, merge), tune, **kwargs)


def write_lm(folder: Path) -> Path:
    """A folder with a language model and its tokenizer, as transformers writes them."""
    lm, words = ScratchLM(16, 1, 2).load()
    words.chat_template = CHATML
    lm.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
