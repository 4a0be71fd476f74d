"""Conditions: what is told, what is left out, and what is refused."""

import pytest
import torch

from uniflow.conditions import LabelCondition, NoCondition
from uniflow.core.part import build_part, part_config

KEEP = torch.zeros(3, dtype=torch.bool)


def test_the_null_class_is_the_one_after_the_last():
    condition = LabelCondition(5, width=4)
    nothing = condition(None, ~KEEP).vector
    torch.testing.assert_close(nothing, condition.embedding.weight[5].expand(3, 4))  # not 1000
    dropped = condition(torch.tensor([0, 1, 2]), torch.tensor([False, True, False])).vector
    torch.testing.assert_close(dropped, condition.embedding.weight[torch.tensor([0, 5, 2])])


def test_nothing_is_said_by_no_condition():
    assert NoCondition(4)(None, KEEP).vector.shape == (3, 4)
    with pytest.raises(ValueError, match="takes no values"):
        NoCondition().parse(["1"])


@pytest.mark.parametrize("label", [-1, 5, 7])
def test_a_class_that_does_not_exist_is_refused(label):
    with pytest.raises(ValueError, match=f"there is no class {label}: LabelCondition knows 0 to 4"):
        LabelCondition(5)(torch.tensor([0, label, 1]), KEEP)


def test_words_become_classes():
    condition = LabelCondition(5)
    assert condition.parse(["4", "0"]).tolist() == [4, 0]
    for word in ("5", "-1", "cat", "1.0"):
        with pytest.raises(ValueError, match="class"):
            condition.parse([word])


def test_data_with_more_classes_is_refused():
    class Data:
        class_names = ("a", "b", "c")

    LabelCondition(3).check_data(Data())
    with pytest.raises(ValueError, match=r"the data has 3 classes, LabelCondition\.num_classes is 2"):
        LabelCondition(2).check_data(Data())


def test_a_condition_is_rebuilt_from_its_config():
    condition = LabelCondition(7, width=12, dropout=0.3)
    again = build_part(part_config(condition), LabelCondition)
    assert (again.num_classes, again.spec, again.dropout) == (7, condition.spec, 0.3)
