"""A combination of other specialists: one line names the difference."""

from typing import Any

import pytest

from logitstore.pipeline.combine.todo import check_same_specialists
from logitstore.storage.errors import SpecMismatch


def named(numbers: Any, **seals: str) -> list[dict[str, str]]:
    """Specialists as an identity has them."""
    names = [f"s-{number}" for number in numbers]
    return [{"capture": name, "seal": seals.get(name.replace("-", ""), "sha256:0")} for name in names]


def check(ours: Any, theirs: Any) -> None:
    check_same_specialists(
        "teachers/all", ours, theirs, made="with which it was combined", remedy="rename it"
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (
            named([0, 1]),
            named(range(8)),
            "teachers/all: expected 8 specialists (s-0 … s-7), with which it was combined, found 2 (s-0, s-1); rename",
        ),
        (
            named([0, 1]),
            named([0]),
            "expected 1 specialist (s-0), with which it was combined, found 2 (s-0, s-1)",
        ),
        (
            named([0, 1, 2, 3, 9]),
            named([0, 1, 2, 4, 9]),
            "expected 5 specialists (s-0 … s-9), with which it was combined, found s-3 in the place of s-4;",
        ),
        (
            named([0, 1, 2], s1="sha256:1"),
            named([2, 1, 0]),
            "expected specialists.s-1 = 'sha256:0', with which it was combined, found 'sha256:1'; rename it",
        ),
    ],
)
def test_other_specialists_are_named_in_a_line(ours: Any, theirs: Any, said: str) -> None:
    with pytest.raises(SpecMismatch) as caught:
        check(ours, theirs)
    assert said in str(caught.value)


@pytest.mark.parametrize("theirs", [named([1, 0]), [*named([0, 1]), "s-2"], [], None, "s-0"])
def test_the_same_in_any_order_pass_and_what_is_no_list_is_for_others(theirs: Any) -> None:
    check(named([0, 1]), theirs)
