"""The one evaluation protocol, used during fit and afterwards."""

from uniflow.metrics.averages import Averages
from uniflow.metrics.channels import ChannelMoments, Moments
from uniflow.metrics.depth import DepthProtocol, DepthScores
from uniflow.metrics.distribution import cmmd, frechet_distance, inception_score, kid, moments, precision_recall
from uniflow.metrics.features import EncoderFeatures, FeatureExtractor, InceptionFeatures, PictureFeatures
from uniflow.metrics.identity import image_digests, noise_for
from uniflow.metrics.perceptual import LPIPS
from uniflow.metrics.probe import LogisticRegression, linear_probe, linear_psnr
from uniflow.metrics.protocol import Evaluation, ReconstructionProtocol, fingerprint
from uniflow.metrics.reconstruction import legacy_ssim, ms_ssim, patch_means, psnr, ssim
from uniflow.metrics.segmentation import SegmentationScores
from uniflow.metrics.similarity import NearestNeighbours, knn_accuracy, leave_one_out_knn_accuracy, linear_cka
from uniflow.metrics.slices import STATISTICS, image_statistics, slice_means
from uniflow.metrics.table import write_table
from uniflow.metrics.video import ClipScores, difference_psnr, flicker
from uniflow.metrics.video_features import I3DFeatures, VideoFeatures, VideoMAEFeatures

Protocol = ReconstructionProtocol  # the name that configs of earlier versions have

__all__ = [
    "LPIPS",
    "STATISTICS",
    "Averages",
    "ChannelMoments",
    "ClipScores",
    "DepthProtocol",
    "DepthScores",
    "EncoderFeatures",
    "Evaluation",
    "FeatureExtractor",
    "I3DFeatures",
    "InceptionFeatures",
    "LogisticRegression",
    "Moments",
    "NearestNeighbours",
    "PictureFeatures",
    "ReconstructionProtocol",
    "SegmentationScores",
    "VideoFeatures",
    "VideoMAEFeatures",
    "cmmd",
    "difference_psnr",
    "fingerprint",
    "flicker",
    "frechet_distance",
    "image_digests",
    "image_statistics",
    "inception_score",
    "kid",
    "knn_accuracy",
    "leave_one_out_knn_accuracy",
    "legacy_ssim",
    "linear_cka",
    "linear_probe",
    "linear_psnr",
    "moments",
    "ms_ssim",
    "noise_for",
    "patch_means",
    "precision_recall",
    "psnr",
    "slice_means",
    "ssim",
    "write_table",
]
