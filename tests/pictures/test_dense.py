"""Masks and depth in colour."""

import torch

from uniflow.pictures.dense import class_colors, depth_picture, overlay, resize_nearest


def test_classes_have_colours_of_their_own():
    colors = class_colors(20)
    assert colors.shape == (20, 3)
    assert 0 <= colors.min() <= colors.max() <= 1
    distances = torch.cdist(colors, colors) + torch.eye(20)
    assert distances.min() > 0.1


def test_the_overlay_colours_classes_and_leaves_ignored_pixels_as_they_are():
    images = torch.rand(1, 3, 8, 8)
    labels = torch.tensor([[[0, 2], [255, 1]]])
    shown = overlay(images, labels, 3, opacity=1.0)
    for (row, column), label in {(0, 0): 0, (0, 4): 2, (4, 4): 1}.items():
        torch.testing.assert_close(shown[0, :, row, column], class_colors(3)[label])
    torch.testing.assert_close(shown[..., 4:, :4], images[..., 4:, :4])
    grey = images.mean(dim=1, keepdim=True)
    faint = overlay(images, labels, 3, opacity=0.0)
    torch.testing.assert_close(faint[..., :4, :], grey.expand_as(images)[..., :4, :])


def test_near_is_lighter_than_far_and_unmeasured_is_black():
    shown = depth_picture(torch.tensor([[[0.5, 1.0, 2.0, 8.0, 0.0]]]), 0.5, 8.0, (1, 5)).sum(dim=1).flatten()
    assert shown.tolist() == sorted(shown.tolist(), reverse=True)
    assert shown[3] > 0
    assert shown[4] == 0


def test_maps_keep_their_values_and_place_when_resized():
    maps = torch.arange(6).view(1, 2, 3)
    assert torch.equal(resize_nearest(maps, (4, 6)), maps.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert resize_nearest(maps, (2, 3)) is maps
    assert torch.equal(resize_nearest(maps, (1, 1)), maps[:, 1:2, 1:2])
