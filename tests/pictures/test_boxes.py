"""Boxes on images: where they are drawn, and in which colour."""

import torch

from uniflow.pictures.boxes import draw_boxes, enlarged, label_color


def test_a_box_is_drawn_along_its_inner_edge_in_the_colour_of_its_label():
    images = torch.zeros(2, 3, 60, 60)
    drawn = draw_boxes(images, [torch.tensor([[10.0, 30, 50, 55]]), torch.zeros(0, 4)], [[3], []], [["c"], []])
    assert drawn.shape == images.shape
    color = torch.tensor(label_color(3)) / 255
    for x, y in ((10, 40), (49, 40), (30, 54), (30, 30)):
        torch.testing.assert_close(drawn[0, :, y, x], color)
    assert not drawn[0, :, 35:50, 15:45].any()
    assert not drawn[0, :, 56:].any()
    assert drawn[0, :, 15:30, 10:22].any()  # the caption
    assert not drawn[1].any()
    assert not images.any()


def test_labels_and_captions_change_the_picture():
    images, box = torch.zeros(1, 3, 60, 60), [torch.tensor([[10.0, 30, 50, 55]])]
    pictures = [draw_boxes(images, box, [[n]], [[text]]) for n, text in ((0, "a"), (1, "a"), (0, "b"))]
    assert not torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_small_images_are_enlarged_by_a_whole_factor():
    large, factor = enlarged(torch.rand(1, 3, 64, 50))
    assert (factor, large.shape[-2:]) == (3, (192, 150))
    assert enlarged(torch.rand(1, 3, 300, 200))[1] == 1
