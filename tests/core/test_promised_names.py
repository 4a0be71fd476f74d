"""Import paths that saved folders, YAML files and others' code may name: none of them may go."""

import importlib
import subprocess
import sys

import pytest

from uniflow.core.moved import MOVED

PROMISED = {
    "uniflow": "EncoderSpec LatentSpec Tokenizer __version__",
    "uniflow.bottleneck": "Bottleneck FSQBottleneck KLBottleneck LayerFusion MLPBottleneck MultiVQBottleneck "
    "ProjectedBottleneck QuantizedBottleneck VQBottleneck",
    "uniflow.callbacks": "EMA CodebookUsage ImageGrid LatentStatistics LatentWriter LinearProbe Monitor PartsSummary "
    "Preemption ResultsFile Stability TeacherGap TokenizerExport",
    "uniflow.conditions": "Condition LabelCondition NoCondition TextCondition",
    "uniflow.data": "ADE20K CachedLatents COCODetection ClipFolder ClipShards DepthFolder ImageDataModule ImageFolder "
    "MaskFolder NYUv2 SceneClips Scenes WebDataset",
    "uniflow.decoders": "Adversarial ConvDecoder PatchFlowDecoder Perceptual PixelDecoder PixelLoss RegressionDecoder "
    "ViTDecoder",
    "uniflow.distill": "Adaptive Constant Cosine DepthPrior FrozenTeacher LastLayer LayerWeighting Linear Piecewise "
    "Schedule Uniform UniformWeighting Warmup",
    "uniflow.encoders": "CLIP DINOv2 DINOv3 EmbeddedViT EncoderOutput InternViT SceneViT SigLIP TimmEncoder "
    "TransformersEncoder VisionEncoder",
    "uniflow.flow": "data_to_velocity euler guide interpolate sample_times step_times velocity_target velocity_to_data",
    "uniflow.features": "BlankSource EncoderSource FeatureSource LatentSource TokenizerSource",
    "uniflow.generators": "MAR DiT Generator LatentGenerator LatentSpace NextToken PictureSpace",
    "uniflow.heads": "AttentiveProbeHead ClassificationHead DPTDepth FCOSHead FasterRCNNHead Head LabelHead "
    "LinearDepth LinearSegmentation LinearSweepHead MapHead Mask2Former MaskRCNNHead MetricDepthHead SegmentationHead "
    "UPerNet ZeroShotHead",
    "uniflow.layers": "ExactLinear",
    "uniflow.losses": "Adversarial Perceptual PixelLoss",
    "uniflow.metrics": "LPIPS DepthProtocol EncoderFeatures Evaluation FeatureExtractor I3DFeatures InceptionFeatures "
    "Protocol ReconstructionProtocol VideoFeatures VideoMAEFeatures",
    "uniflow.sharding.strategy": "FSDP2",
    "uniflow.start": "Regression",
    "uniflow.tasks": "ClassificationTask DepthTask DetectionTask FeatureTask FusedAdamW GenerationTask Pretraining "
    "SegmentationTask Task TokenizerTask VisualQuestionTask",
    "uniflow.training": "ConstantSchedule CosineSchedule FusedAdamW LinearSchedule Piecewise Schedule Warmup",
    # Configs of earlier versions.
    "uniflow.callbacks.ema": "EMA",
    "uniflow.callbacks.gap": "TeacherGap",
    "uniflow.cpu": "fuse_attention use_onednn",
    "uniflow.decoders.layers": "AdaLNBlock GlobalStage PatchMLP PositionEmbedding patchify unpatchify",
    "uniflow.distill.schedule": "Constant Cosine Linear Piecewise Schedule Warmup",
    "uniflow.distill.weighting": "Adaptive DepthPrior LastLayer LayerWeighting",
    "uniflow.part": "Part build_part import_part part_config",
    "uniflow.specs": "EncoderOutput EncoderSpec LatentSpec",
    "uniflow.tasks.optim": "FusedAdamW parameter_groups",
    "uniflow.tasks.pretraining": "ColorHead DepthHead Head LabelHead MaskHead",
    "uniflow.tasks.pretraining_heads": "PatchHead TeacherHead",
    "uniflow.tasks.pretraining_start": "CopiedWeights",
    "uniflow.tasks.unlabelled": "UnlabelledCrops",
}


@pytest.mark.parametrize("module", PROMISED)
def test_promised_names_can_be_imported(module):
    imported = importlib.import_module(module)
    missing = [name for name in PROMISED[module].split() if not hasattr(imported, name)]
    assert not missing, f"{module} has lost {missing}"


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_module_gives_the_same_objects(old):
    stand_in = importlib.import_module(old)
    for new in map(importlib.import_module, MOVED[old]):
        own = [n for n, v in vars(new).items() if getattr(v, "__module__", None) == new.__name__ and n[0] != "_"]
        for name in own:
            assert getattr(stand_in, name) is getattr(new, name)


def test_an_unknown_name_of_a_moved_module_is_an_attribute_error():
    with pytest.raises(ImportError, match="nothing"):
        from uniflow.specs import nothing  # noqa: F401
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("uniflow.no_such_module")


def test_the_package_itself_imports_no_torch():
    program = "import uniflow, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_tokenizer_is_used_without_what_training_needs():
    """Imports are most of the time that the first image takes."""
    program = (
        "import sys, torch; from uniflow import Tokenizer; "
        "Tokenizer.from_pretrained('embedded').encode(torch.zeros(1, 3, 32, 32)); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"torch", "timm"} <= loaded
    training = {"lightning", "torchmetrics", "transformers", "webdataset", "tensorboard", "peft"}
    assert not loaded & (training | {"scipy", "sklearn", "matplotlib", "pandas"})
