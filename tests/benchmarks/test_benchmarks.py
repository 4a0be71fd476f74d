"""What the benchmarks measure with, what they print, and the page that is made of it."""

import json
import sys

import pytest
import torch
from tiny import tiny_scenes, tiny_task

from benchmarks import gpu, inference, measure, models, overhead, profile_step, reconstruction, run, step

FIELDS = {"name", "value", "unit", "baseline", "ratio", "target", "met", "command", "machine", "torch", "date"}


def lines(capfd):
    return parsed(capfd.readouterr().out)


def parsed(output):
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert found
    assert all(line.keys() >= FIELDS for line in found)
    return {line["name"]: line for line in found}


def test_candidates_take_turns_and_a_ratio_is_the_median_of_the_rounds():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = measure.interleaved(calls, rounds=2, warmup=1)
    assert order == list("ababab")
    assert [len(times[name].cpu) for name in "ab"] == [2, 2]
    own, other = measure.Times([1.0, 9.0, 2.0], [1.0] * 3), measure.Times([2.0, 9.0, 8.0], [2.0] * 3)
    line = measure.measurement("x", own, other, against="y", target=0.5)
    assert line["ratio"] == 0.5
    assert line["spread"] == [0.25, 1]
    assert line["met"] is True
    assert line["wall_ratio"] == 0.5
    assert measure.measurement("x", own, other, against="y", target=0.4)["met"] is False
    assert measure.row("x", 1, "s", None, None)["met"] is None


def test_the_peak_counts_what_is_alive_at_one_time():
    mib = 2**20
    held = torch.ones(mib // 4)

    def call():
        for _ in range(3):  # 2 MiB at a time, never 6
            torch.ones(2 * mib // 4)
        torch.ones(mib // 4) + held

    peak = measure.peak_live_bytes(call) - measure.live_bytes()
    assert 2 * mib <= peak < 2.1 * mib


def test_a_feed_gives_one_step_at_each_call_and_passes_errors_on(tmp_path):
    task, batch = tiny_task(), next(iter(_loader()))
    trainer = models.make_trainer(tmp_path)
    feed = models.Feed(lambda data: trainer.fit(task, data), batch)
    assert trainer.global_step == 0
    feed.step()
    feed.step()
    assert trainer.global_step == 2
    feed.close()

    def broken(data):
        next(iter(data))
        raise ArithmeticError("broken")

    feed = models.Feed(broken, batch)
    with pytest.raises(ArithmeticError, match="broken"):
        feed.step()


def _loader():
    data = tiny_scenes()
    data.setup("fit")
    return data.train_dataloader()


def test_the_straightforward_step_and_the_floor_train_the_same_networks():
    sizes = models.Sizes(tiny=True)
    own, other = (sizes.parts()[0].state_dict() for _ in range(2))
    assert all(torch.equal(own[name], other[name]) for name in own)
    models.straightforward_step(sizes)()
    models.floor_step(sizes, dtype=torch.bfloat16, compiled=False, fused=False)()


def test_step_prints_time_and_memory(capfd, monkeypatch):
    names = (step.WRITTEN, f"{step.WRITTEN}, selective checkpointing")
    monkeypatch.setitem(step.VARIANTS, "bf16-mixed", {name: step.VARIANTS["bf16-mixed"][name] for name in names})
    assert step.main(["--tiny", "--rounds", "1", "--precision", "bf16-mixed"]) == 0
    found = lines(capfd)
    assert sorted(line["target"] for line in found.values() if line["target"]) == [0.45, 0.8, 1.1]
    # Time and memory of both, ours over the floor, the checkpointed one over ours, the distances.
    assert len(found) == 2 * len(names) + 3
    assert all(line["ratio"] > 0 for line in found.values())


def test_reconstruction_prints_its_targets_and_how_far_results_differ(capfd, monkeypatch):
    monkeypatch.setattr(reconstruction, "has_slow_bfloat16", lambda: False)
    assert reconstruction.main(["--tiny", "--rounds", "1"]) == 0
    found = lines(capfd)
    assert found["reconstruction, float32, fused attention, oneDNN"]["target"] == 0.8
    assert found["reconstruction, bfloat16, fused attention"]["target"] == 0.6
    assert found["reconstruction, float32, fused attention"]["largest_difference"] < 1e-3
    assert 0 < found["reconstruction, bfloat16, fused attention"]["largest_difference"] < 0.5


@pytest.mark.slow
def test_inference_compares_ways_that_give_the_same_images(capfd, monkeypatch):
    monkeypatch.setattr(inference, "has_slow_bfloat16", lambda: False)
    assert inference.main(["--tiny", "--rounds", "1"]) == 0
    found = lines(capfd)
    exact, half = (found[f"decode, embedded, 64 px, batch 2: {way}"] for way in ("ONNX Runtime", "bfloat16, autocast"))
    assert exact["psnr_to_baseline"] > 80 > half["psnr_to_baseline"] > 40
    assert "encode, DINOv2-S/14, 28 px, batch 2: float32, oneDNN" in found


def test_overhead_measures_each_part(capfd, monkeypatch):
    monkeypatch.setattr(overhead, "CYCLE", 2)
    assert overhead.main(["--tiny", "--rounds", "1"]) == 0
    found = lines(capfd)
    assert [line["target"] for line in found.values()].count(1.03) == 1
    assert "validation with the teacher gap" in found


def test_the_profile_names_the_operators(tmp_path, capfd):
    assert profile_step.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert "aten::_fused_adamw_" in capfd.readouterr().out
    assert "aten::addmm" in (tmp_path / "top.txt").read_text()
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_the_gpu_script_runs_on_a_cpu(capfd):
    options = ["--device", "cpu", "--tiny", "--eager"]
    assert gpu.main([*options, "--parts", "float8", "inference", "difference", "reading", "generator"]) == 0
    output = capfd.readouterr()
    assert "float8 is left out" in output.err
    found = parsed(output.out)
    assert sum(name.startswith(("encode, batch", "decode, batch")) for name in found) == 4
    assert found["bfloat16 reconstruction, PSNR against float32"]["value"] > 20
    assert found["reading JPEGs of 500 x 375 pixels to 28, 0 workers"]["value"] > 0
    assert {"generator, training step, batch 2", "generator, sampling, batch 1"} <= found.keys()
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="no CUDA device"):
            gpu.main([])


@pytest.mark.slow
def test_the_gpu_script_trains_on_a_cpu(capfd):
    options = ["--device", "cpu", "--tiny", "--eager", "--encoders", "s14"]
    assert gpu.main([*options, "--parts", "train", "fsdp2"]) == 0
    found = lines(capfd)
    assert found["training step, DINOv2-s14, 28 px, eager, batch 2"]["value"] > 0
    assert found["FSDP2 on one device, |loss over that without - 1|"]["met"]


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A good script and one that fails after its first figure, in place of the benchmarks."""
    (tmp_path / "benchmarks").mkdir()
    line = json.dumps(measure.row("a figure", 2.0, "s", "another", 0.5, target=0.6))
    (tmp_path / "benchmarks" / "step.py").write_text(f"print('hello')\nprint('''{line}''')\n")
    (tmp_path / "benchmarks" / "plan.py").write_text(f"print('''{line}''')\nraise ArithmeticError('no such luck')\n")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    return tmp_path / "page.md"


def test_the_page_has_the_figures_and_keeps_notes_and_other_sections(scripts, capfd):
    assert run.main(["--only", "step", "--out", str(scripts)]) == 0
    assert list(lines(capfd)) == ["a figure"]
    text = scripts.read_text()
    assert "| a figure | 2 s | another | 0.5 | 0.6 | met |" in text
    scripts.write_text(text.replace(run.NOTES[1], f"It was slow before.\n\n{run.NOTES[1]}"))
    assert run.main(["--only", "plan", "--out", str(scripts)]) == 1
    text = scripts.read_text()
    assert "**Failed**: ArithmeticError: no such luck" in text
    assert text.count("| a figure |") == 2
    assert text.count("It was slow before.") == 1
    assert text.index("## Training step") < text.index("## Memory planner") < text.index("## Notes")


def test_each_kind_of_processor_keeps_its_table(scripts, monkeypatch):
    assert run.processor("step") == torch.backends.cpu.get_cpu_capability()
    for kind in ("AVX512", "AVX2"):
        monkeypatch.setattr(run, "processor", lambda script, kind=kind: kind)
        assert run.main(["--only", "step", "--out", str(scripts)]) == 0
    text = scripts.read_text()
    assert text.count("## Training step") == 1
    assert text.count("| a figure |") == 2
    assert text.index("**AVX2**") < text.index("**AVX512**")
    assert run.page([], text) == text


def test_a_script_without_figures_or_without_end_has_failed(tmp_path):
    (tmp_path / "silent.py").write_text("print('{not json')\nprint('[1]')\n")
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(60)\n")
    assert run.run("step", tmp_path / "silent.py", 30).failure == "no line of JSON was printed"
    assert "not done after" in run.run("step", tmp_path / "endless.py", 1).failure


def test_a_command_names_the_script_from_the_projects_folder(monkeypatch):
    monkeypatch.setattr(sys, "argv", [step.__file__, "--rounds", "3"])
    assert measure.row("x", 1, "s", None, None)["command"] == "python benchmarks/step.py --rounds 3"
