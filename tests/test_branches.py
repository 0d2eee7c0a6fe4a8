"""Branch strategies: which depths a step runs, drawn alike in every process."""

from collections import Counter
from itertools import pairwise

import pytest

from restore.branches import Branches, depth_names, plan, shares
from restore.errors import RestoreError
from restore.models import create_model

COST = ("s", "m", "l")


def planned(branches, step=0, micro=0, rows=8, seed=0, depths=("s", "m", "l"), steps=0):
    return plan(branches, list(depths), seed, step, micro, rows, steps)


def test_alternate_draws_one_depth_a_step_with_the_given_chances():
    branches = Branches("alternate", probability={"s": 0.25, "l": 0.75})
    drawn = Counter()
    for step in range(2000):
        passes = [planned(branches, step, micro) for micro in range(3)]
        # all micro-batches of a step at one depth
        assert passes[0] == passes[1] == passes[2] and len(passes[0]) == 1
        assert passes[0][0].rows == slice(0, 8) and passes[0][0].weight == 1
        drawn[passes[0][0].depth] += 1
    assert drawn["m"] == 0 and abs(drawn["s"] - 500) < 80                          # four standard deviations: 77


def test_equal_chances_without_probability():
    drawn = Counter(planned(Branches("alternate"), step)[0].depth for step in range(3000))
    assert all(abs(drawn[name] - 1000) < 105 for name in COST)


def test_draws_depend_on_seed_and_step_alone():
    branches = Branches("alternate")
    first = [planned(branches, step)[0].depth for step in range(50)]
    assert first == [planned(branches, step)[0].depth for step in range(50)]
    assert first[::-1] == [planned(branches, step)[0].depth for step in reversed(range(50))]
    assert first != [planned(branches, step, seed=1)[0].depth for step in range(50)]


def test_per_sample_covers_every_row_once():
    for groups, rows in ((0, 8), (3, 8), (4, 2)):
        seen = Counter()
        for step in range(200):
            passes = planned(Branches("per_sample", groups=groups), step, rows=rows)
            covered = [row for item in passes for row in range(item.rows.start, item.rows.stop)]
            assert covered == list(range(rows))
            assert sum(item.weight for item in passes) == pytest.approx(1)
            assert all(a.depth != b.depth for a, b in pairwise(passes))      # neighbours were joined
            seen.update(item.depth for item in passes)
        assert set(seen) == set(COST)


def test_per_sample_draws_anew_in_each_micro_batch():
    assert any(
        planned(Branches("per_sample"), step, 0) != planned(Branches("per_sample"), step, 1) for step in range(20)
    )


def test_sandwich_is_largest_smallest_and_a_random_one_between():
    passes = plan(Branches("sandwich"), ["s", "m", "x", "l"], 0, 0, 0, 4)
    assert [p.depth for p in passes[:2]] == ["l", "s"] and passes[2].depth in "mx" and len(passes) == 3
    assert sum(p.weight for p in passes) == pytest.approx(1) and not any(p.distill for p in passes)
    middles = {plan(Branches("sandwich"), ["s", "m", "x", "l"], 0, step)[2].depth for step in range(30)}
    assert middles == {"m", "x"}


def test_distillation_leaves_the_largest_to_the_target():
    assert [p.distill for p in planned(Branches("sandwich", distill=True))] == [False, True, True]


def test_two_depths_make_a_sandwich_of_two():
    assert [p.depth for p in planned(Branches("sandwich"), depths=("s", "l"))] == ["l", "s"]


def test_controls():
    assert {planned(Branches("largest_only"), step)[0].depth for step in range(10)} == {"l"}
    assert planned(Branches("single:s"))[0].depth == "s"
    assert planned(Branches("single:2,1,1,2"))[0].depth == "2,1,1,2"
    assert plan(Branches("sandwich"), [None], 0, 0, 0, 4)[0].depth is None


def test_depth_names_of_a_network():
    model = create_model("dynet", width=8, heads=(1, 1, 1, 1), refinement=1,
                         depths={"a": (1, 1, 1, 1), "b": (1, 1, 1, 6), "c": (3, 1, 1, 1)}, default_depth="a")
    assert depth_names(model, Branches()) == ["a", "b", "c"]
    model.depths = dict(reversed(model.depths.items()))
    assert depth_names(model, Branches()) == ["a", "b", "c"]             # the order of the recipe decides nothing
    # c costs more than b, though it repeats less in all
    assert depth_names(model, Branches("largest_only")) == ["c"]
    assert depth_names(model, Branches("single:b")) == ["b"]
    assert depth_names(model, Branches("single:2,2,2,2")) == ["2,2,2,2"]
    with pytest.raises(RestoreError, match=r"branches\.strategy.*huge"):
        depth_names(model, Branches("single:huge"))
    with pytest.raises(RestoreError, match=r"branches\.probability.*huge.*c, b, a"):
        depth_names(model, Branches(probability={"huge": 1}))
    assert depth_names(create_model("gunet_t"), Branches("sandwich")) == [None]


@pytest.mark.parametrize(
    "branches",
    [
        Branches("alternate"),
        Branches("alternate", {"s": 3, "l": 1}),
        Branches("per_sample", groups=2),
        Branches("sandwich"),
        Branches("largest_only"),
        Branches("single:m"),
        Branches("alternate", grow=0.6),
        Branches("sandwich", grow=0.5),
        Branches("per_sample", {"l": 1}, grow=0.5),         # nobody has a chance before the deepest comes in
    ],
)
def test_shares_are_those_of_many_planned_steps(branches):
    counted = Counter()
    for step in range(2000):
        for item in planned(branches, step, steps=2000):
            counted[item.depth] += (item.rows.stop - item.rows.start) / 8 / 2000
    expected = shares(branches, list(COST))
    assert all(counted[name] == pytest.approx(expected.get(name, 0), abs=0.05) for name in COST)


def test_depths_come_in_one_after_another():
    branches = Branches("alternate", grow=0.5)
    seen = [{planned(branches, step, steps=400)[0].depth for step in range(start, start + 100)} for start in (0, 100, 200, 300)]
    assert seen == [{"s"}, {"s", "m"}, {"s", "m", "l"}, {"s", "m", "l"}]
    # after its growth a run draws what one without growth draws
    assert [planned(branches, step, steps=400) for step in range(200, 250)] == [planned(Branches(), s) for s in range(200, 250)]


@pytest.mark.parametrize("values, named", [
    ({"strategy": "sandwhich"}, "sandwhich"), ({"groups": -1}, "groups"), ({"probability": {"s": -1}}, "probability"),
    ({"probability": {"s": 0}}, "probability"), ({"distill": True}, "distill"),
    ({"grow": 1}, "grow"), ({"grow": 0.5, "strategy": "largest_only"}, "grow")])
def test_impossible_values_are_named(values, named):
    with pytest.raises(RestoreError, match=named):
        Branches(**values).check()
