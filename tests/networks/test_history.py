from __future__ import annotations

import pytest
import torch
from torch import nn

from modistill.errors import ModelError
from modistill.networks.history import ImageHistory


def numbered(*numbers):
    """Images (B, 1, 2, 3), each of one number."""
    return torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 3).clone()


def numbers(images):
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def test_it_fills_before_it_answers_with_old_images():
    history = ImageHistory(size=3)
    assert numbers(history(numbered(1, 2))) == [1, 2]
    assert numbers(history(numbered(3))) == [3]
    assert numbers(history.images) == [1, 2, 3]


def test_equals_the_plain_rule():
    """One image after the other, as CycleGAN says it, from the same random numbers."""
    history, kept = ImageHistory(size=4), []
    for step in range(30):
        given = [2.0 * step, 2.0 * step + 1]
        torch.manual_seed(step)
        shown = numbers(history(numbered(*given)))
        torch.manual_seed(step)
        chances, places = torch.rand(2), torch.randint(4, (2,))
        expected = []
        for number, chance, place in zip(given, chances.tolist(), places.tolist(), strict=True):
            if len(kept) < 4:
                kept.append(number)
                expected.append(number)
            elif chance < 0.5:
                expected.append(kept[place])
                kept[place] = number
            else:
                expected.append(number)
        assert shown == expected
        assert numbers(history.images) == kept


def test_every_second_image_is_an_old_one_and_old_ones_are_shown_once():
    torch.manual_seed(0)
    history = ImageHistory(size=10)
    shown = [(n, numbers(history(numbered(n)))[0]) for n in range(1000)]
    old = [is_shown for given, is_shown in shown[10:] if is_shown != given]
    assert 430 < len(old) < 560  # half of 990, by five deviations
    fresh = {given for given, is_shown in shown[10:] if is_shown == given}
    assert len(set(old)) == len(old)
    assert not fresh & set(old)


def test_randomness_is_the_global_one_of_the_cpu():
    full = numbered(*range(5))
    results = []
    for seed in (1, 1, 2):
        history = ImageHistory(size=5)
        history(full)
        torch.manual_seed(seed)
        results.append(numbers(torch.cat([history(numbered(10 + n)) for n in range(12)])))
    assert results[0] == results[1] != results[2]


def test_the_random_numbers_used_do_not_depend_on_the_state():
    states = []
    for kept in (numbered(1), numbered(*range(5))):
        history = ImageHistory(size=5)
        history(kept)
        torch.manual_seed(0)
        history(numbered(7, 8))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_resuming_is_exact():
    def steps(module, numbers_of_steps):
        shown = []
        for step in numbers_of_steps:
            torch.manual_seed(step)
            shown += module["history"](torch.rand(2, 1, 4, 4))
        return shown

    for stop in (0, 1, 10):  # empty, half full, full
        module = nn.ModuleDict({"history": ImageHistory(size=6)})
        steps(module, range(stop))
        saved = {name: value.clone() for name, value in module.state_dict().items()}
        expected = steps(module, range(stop, 25))
        again = nn.ModuleDict({"history": ImageHistory(size=6)})
        again.load_state_dict(saved)
        assert all(torch.equal(*pair) for pair in zip(steps(again, range(stop, 25)), expected, strict=True))
        assert torch.equal(again["history"].images, module["history"].images)


def test_what_is_kept_is_not_what_is_given():
    """Images that are changed afterwards, or learnt from, change nothing here."""
    history, images = ImageHistory(size=1), numbered(1).requires_grad_()
    shown = history(images * 1)
    assert not shown.requires_grad
    assert not history.images.requires_grad
    shown.zero_()
    assert numbers(history.images) == [1]
    torch.manual_seed(0)
    answers = [history(numbered(n)) for n in range(2, 12)]
    before = [answer.clone() for answer in answers]
    history(numbered(99))
    assert all(torch.equal(*pair) for pair in zip(answers, before, strict=True))


def test_no_parameters_and_a_type_that_follows_the_images():
    history = ImageHistory(size=2)
    assert not list(history.parameters())
    assert history(numbered(1).double()).dtype == history.images.dtype == torch.double
    assert history(numbered(*range(9))).dtype == torch.float32
    assert "size=2" in repr(history)


def test_size_zero_is_off():
    history, images = ImageHistory(size=0), numbered(1, 2).requires_grad_()
    state = torch.get_rng_state()
    shown = history(images)
    assert torch.equal(shown, images)
    assert not shown.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert len(history.images) == 0


def test_what_does_not_fit():
    history = ImageHistory(size=3)
    history(numbered(1, 2))
    with pytest.raises(ModelError, match=r"images of shape \(1, 4, 4\), the history keeps \(1, 2, 3\) \(train with one patch"):
        history(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ModelError, match=r"a history of 2 images, this one keeps 1 \(resume with the recipe"):
        ImageHistory(size=1).load_state_dict(history.state_dict())
