"""A condition is dropped, indexed and joined as a whole, whatever parts it has."""

import pytest
import torch

from ldm.condition import Condition, no_label

LABEL = torch.tensor([0, 1, 2])
WORDS, NO_WORDS = torch.randn(3, 2, 4), torch.randn(1, 3, 4)
BESIDE, NOTHING_BESIDE = torch.randn(3, 2, 5, 5), torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
FULL = Condition(LABEL, WORDS, torch.ones(3, 2, dtype=torch.bool), BESIDE, s=torch.rand(3), w=torch.rand(3))
NULL = Condition(torch.tensor([9]), NO_WORDS, None, NOTHING_BESIDE)


def test_labels_are_dropped_where_it_is_said():
    where = torch.tensor([True, False, True])
    assert Condition(LABEL).dropped(where, no_label(9)).label.tolist() == [9, 1, 9]
    assert Condition(LABEL).unsaid(no_label(9)).label.tolist() == [9, 9, 9]
    assert Condition(LABEL).dropped(where, no_label(9)).parts().keys() == {"label"}


def test_all_parts_are_dropped_together_but_the_times_and_scales():
    dropped = FULL.dropped(torch.tensor([True, False, False]), NULL)
    assert torch.equal(dropped.context[0], NO_WORDS[0])
    assert torch.equal(dropped.context[1:, :2], WORDS[1:])
    assert dropped.mask.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert torch.equal(dropped.concat[0], NOTHING_BESIDE[0].expand(2, 5, 5))
    assert torch.equal(dropped.concat[1:], BESIDE[1:])
    assert torch.equal(dropped.s, FULL.s)
    assert torch.equal(dropped.w, FULL.w)


def test_two_are_joined_row_by_row():
    joined = FULL.beside(FULL.unsaid(NULL))
    assert len(joined.label) == 6
    assert joined.context.shape == (6, 3, 4)
    first = joined.rows(slice(0, 3))
    assert torch.equal(first.context[:, :2], WORDS)
    assert not first.mask[:, 2].any()
    assert torch.equal(joined.rows([4]).concat[0], NOTHING_BESIDE[0].expand(2, 5, 5))
    assert torch.equal(joined.rows([4]).s, FULL.s[1:2])


def test_what_has_other_parts_is_refused():
    with pytest.raises(ValueError, match=r"one of two conditions has context, and the other has not"):
        Condition(LABEL, WORDS).beside(Condition(LABEL))
    with pytest.raises(ValueError, match=r"has concat"):
        Condition(LABEL, concat=BESIDE).unsaid(no_label(9))
    with pytest.raises(ValueError, match=r"the net takes no concat in its condition: .* net.concat_channels"):
        FULL.refuse("the net", ("label", "context", "mask"))
