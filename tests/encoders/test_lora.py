"""Low-rank adapters: an equal start, what is trained, the merged weights, and what is refused."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from test_encoder_contract import CASES, TINY, draw_images, make

from uniflow.core.part import build_part, part_config
from uniflow.distill import FrozenTeacher
from uniflow.encoders import SceneViT, TimmEncoder, VisionEncoder
from uniflow.encoders.lora import LORA_ARGUMENTS, merge_adapters, plain_copy


def lora(case: str = "scene_vit", **arguments) -> VisionEncoder:
    return make(case, **{"tune": "lora", "lora_rank": 4, **arguments})


def move(encoder: VisionEncoder) -> VisionEncoder:
    """Other values in all adapters, as training would have made them."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return encoder


def trained(encoder: VisionEncoder) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in encoder.named_parameters() if p.requires_grad}


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


def test_starts_as_the_plain_encoder(case):
    plain, adapted = make(case), lora(case)
    images = draw_images(plain)
    assert merge_adapters(adapted.state_dict(), 4.0).keys() == plain.state_dict().keys()
    plain.load_state_dict(merge_adapters(adapted.state_dict(), 4.0))
    for expected, got in zip(plain(images).hidden_states, adapted(images).hidden_states, strict=True):
        # EVA adds its bias apart, which rounds otherwise.
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 if case == "timm_eva02" else 0)


def test_adapters_alone_are_trained_and_get_a_gradient(case):
    encoder = lora(case)
    (encoder(draw_images(encoder)).hidden_states[-1] ** 3).mean().backward()
    parameters = trained(encoder)
    assert all(".lora_A." in name or ".lora_B." in name for name in parameters)
    assert [name for name, p in parameters.items() if p.grad is None] == []
    # A stands behind B = 0 and has no gradient yet.
    assert [n for n, p in parameters.items() if ".lora_B." in n and not p.grad.abs().sum() > 0] == []
    linear = [m for m in make(case).blocks.modules() if type(m) is torch.nn.Linear]
    assert len(parameters) == 2 * len(linear) > 0


def test_merged_weights_compute_the_same(case):
    adapted = move(lora(case, lora_alpha=6.0)).double()
    images = draw_images(adapted)
    config = part_config(adapted)
    arguments, tensors = type(adapted).plain_state(config["init_args"], adapted.state_dict())
    plain = build_part({**config, "init_args": arguments}, VisionEncoder, weights=None).double()
    assert all(p.requires_grad for p in plain.parameters())
    start = plain(images).hidden_states[-1]
    plain.load_state_dict(tensors, strict=True)
    expected = adapted(images).hidden_states[-1]
    torch.testing.assert_close(plain(images).hidden_states[-1], expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(start, expected, rtol=1e-3, atol=1e-3)


def test_teacher_is_the_original_and_shares_its_weights(case):
    encoder = lora(case)
    images = draw_images(encoder)
    teacher, before = FrozenTeacher(encoder).encoder, encoder(images).hidden_states[-1].detach()
    move(encoder)
    assert torch.equal(teacher(images).hidden_states[-1], before)
    assert not torch.allclose(encoder(images).hidden_states[-1], before, atol=1e-4)
    frozen = {p.data_ptr() for p in encoder.parameters() if not p.requires_grad}
    assert {p.data_ptr() for p in teacher.parameters()} == frozen
    assert teacher.state_dict().keys() == make(case).state_dict().keys()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert len(trained(encoder)) > 0


@pytest.mark.parametrize("tune", ["full", "frozen", 1])
def test_teacher_of_others_shares_nothing(tune):
    encoder = make("scene_vit", tune=tune)
    own = {p.data_ptr() for p in encoder.parameters()}
    assert not own & {p.data_ptr() for p in FrozenTeacher(encoder).parameters()}


def test_teacher_does_not_round_what_it_shares():
    encoder = lora()
    before = copy.deepcopy(encoder.state_dict())
    teacher = FrozenTeacher(encoder)
    teacher.round_weights(torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    teacher(draw_images(encoder))  # without autocast, as nothing was rounded


def test_teacher_follows_the_student_to_another_type():
    encoder = lora()
    teacher = plain_copy(encoder)
    encoder.double()  # as moving to a device does, it changes parameters in place
    assert {p.dtype for p in teacher.parameters()} == {torch.float64}


@pytest.mark.parametrize("case", ["scene_vit", "dinov3", "transformers_clip"])
def test_gradient_checkpointing_changes_nothing(case):
    gradients = []
    for enable in (False, True):
        encoder = move(lora(case, gradient_checkpointing=enable))
        (encoder(draw_images(encoder)).hidden_states[-1] ** 3).mean().backward()
        gradients.append([p.grad for p in trained(encoder).values()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize("case", ["scene_vit", "transformers_clip"])
def test_bf16_autocast(case):
    encoder = move(lora(case))
    exact = encoder(draw_images(encoder)).hidden_states[-1]
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(draw_images(encoder)).hidden_states[-1]
    assert torch.nn.functional.cosine_similarity(exact, output.float(), dim=-1).min() > 0.99
    output.float().pow(2).mean().backward()
    assert all(p.grad.isfinite().all() for p in trained(encoder).values())


def test_fused_bias_of_eva_does_not_pass_the_adapters_by():
    encoder = TimmEncoder("eva_giant_patch14_224.clip_ft_in1k", weights=None, tune="lora", lora_rank=2, **TINY)
    assert encoder.blocks[0].attn.q_bias is not None
    (encoder(draw_images(encoder)).hidden_states[-1] ** 3).mean().backward()
    assert [name for name, p in trained(encoder).items() if p.grad is None] == []
    assert "model.blocks.0.attn.qkv.lora_B.default.weight" in trained(encoder)


def test_defaults_are_recorded():
    encoder = make("scene_vit", tune="lora")
    arguments = part_config(encoder)["init_args"]
    assert (arguments["lora_rank"], arguments["lora_alpha"], arguments["lora_targets"]) == (16, 16.0, None)
    assert encoder.blocks[0].attn.qkv.scaling == {"default": 1.0}
    assert part_config(make("scene_vit"))["init_args"]["lora_rank"] is None


def test_rank_sets_the_size():
    sizes = {rank: sum(p.numel() for p in trained(lora(lora_rank=rank)).values()) for rank in (1, 3)}
    width = TINY["embed_dim"]
    assert sizes[1] == TINY["depth"] * width * ((1 + 3) + (1 + 1) + 2 * (1 + 4))
    assert sizes[3] == 3 * sizes[1]


def test_alpha_scales_the_adapters():
    small, large = move(lora(lora_alpha=4.0)), move(lora(lora_alpha=8.0))
    images = draw_images(small)
    assert not torch.allclose(small(images).hidden_states[-1], large(images).hidden_states[-1])
    key = "model.blocks.0.attn.qkv"
    change = [
        merge_adapters(e.state_dict(), alpha)[f"{key}.weight"] - e.state_dict()[f"{key}.base_layer.weight"]
        for e, alpha in ((small, 4.0), (large, 8.0))
    ]
    torch.testing.assert_close(2 * change[0], change[1])


def test_targets_choose_the_layers():
    encoder = lora(lora_targets=["qkv", "fc2"])
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained(encoder)} == {"qkv", "fc2"}
    assert len(trained(encoder)) == TINY["depth"] * 2 * 2


def test_more_layers_than_peft_matches_by_name():
    """peft shortens long lists of names to their ends."""
    encoder = lora("clip", depth=12, lora_targets=["proj"])
    assert {name.split(".lora_")[0] for name in trained(encoder)} == {f"model.blocks.{i}.attn.proj" for i in range(12)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_rank": 8}, "lora_rank is for tune 'lora', and tune is 'full'"),
        ({"lora_alpha": 8.0, "tune": 1}, "lora_alpha is for tune 'lora', and tune is 1"),
        ({"lora_targets": ["qkv"], "tune": "frozen"}, "lora_targets is for tune 'lora', and tune is 'frozen'"),
        ({"tune": "lora", "lora_rank": 0}, "lora_rank must be an integer >= 1 or null, got 0"),
        ({"tune": "lora", "lora_rank": 1.5}, "lora_rank must be an integer >= 1 or null, got 1.5"),
        ({"tune": "lora", "lora_alpha": 0.0}, "lora_alpha must be a finite number > 0 or null, got 0.0"),
        (
            {"tune": "lora", "lora_targets": ["query"]},
            "lora_targets: the blocks have no linear layer 'query'; theirs are fc1, fc2, proj, qkv",
        ),
        (
            {"tune": "lora", "lora_targets": []},
            "lora_targets: the blocks have no linear layer to adapt; theirs are fc1",
        ),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        SceneViT(weights=None, **TINY, **arguments)


def test_without_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"^tune 'lora' needs peft: pip install uniflow\[lora\]$"):
        SceneViT(weights=None, tune="lora")
    SceneViT(weights=None, tune="full", **TINY)


def test_merging_leaves_the_model_alone_and_is_in_float32():
    encoder = move(lora()).to(torch.bfloat16)
    before = copy.deepcopy(encoder.state_dict())
    merged = merge_adapters(encoder.state_dict(), 4.0)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    key = "model.blocks.1.mlp.fc1"
    names = ("base_layer", "lora_B.default", "lora_A.default")
    base, up, down = (before[f"{key}.{name}.weight"].float() for name in names)
    assert merged[f"{key}.weight"].dtype == torch.float32
    torch.testing.assert_close(merged[f"{key}.weight"], base + up @ down)
    assert merged["model.blocks.1.norm1.weight"].dtype == torch.bfloat16


def test_adapters_that_do_not_fit_are_refused():
    tensors = lora().state_dict()
    down, up = (f"model.blocks.0.attn.proj.lora_{side}.default.weight" for side in "AB")
    for change, message in (
        ({down: torch.zeros(4, 31)}, r"do not fit its weight \(32, 32\)"),
        ({up: torch.zeros(32, 3)}, "do not form a pair"),
        ({down: torch.zeros(0, 32), up: torch.zeros(32, 0)}, "do not form a pair"),
        ({up: torch.zeros(32)}, "do not form a pair"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_adapters(tensors | change, 4.0)
    del tensors[up]
    with pytest.raises(ValueError, match="do not form a pair"):
        merge_adapters(tensors, 4.0)


PAGE = (Path(__file__).parents[2] / "docs" / "lora.md").read_text()


def test_page_lists_the_arguments():
    assert re.findall(r"^\| `(lora_\w+)` \|", PAGE, re.MULTILINE) == list(LORA_ARGUMENTS)


def test_encoder_of_the_page():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict = {"__name__": "page"}
    exec(compile(example, "docs/lora.md", "exec"), names)
    encoder = names["MyEncoder"](tune="lora", lora_rank=2)
    assert set(trained(encoder)) == {f"blocks.{i}.0.lora_{side}.default.weight" for i in (0, 1) for side in "AB"}
    _, tensors = type(encoder).plain_state(part_config(encoder)["init_args"], encoder.state_dict())
    names["MyEncoder"]().load_state_dict(tensors, strict=True)
