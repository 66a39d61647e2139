"""No case of the list goes missing: each has a test, and docs/attack-tests.md says which."""

from __future__ import annotations

from attacks.table import COMMAND, TABLE, AttackTest, find_tests, read_cases, render


def test_every_case_has_a_test() -> None:
    cases = read_cases()
    tried = {test.number for test in find_tests()}
    assert sorted(cases.numbers - tried - cases.not_yet.keys()) == []


def test_a_case_that_is_excused_has_no_test_yet() -> None:
    cases = read_cases()
    tried = {test.number for test in find_tests()}
    assert sorted(cases.not_yet.keys() & tried) == []
    assert cases.not_yet.keys() <= cases.numbers


def test_the_table_of_the_docs_is_fresh() -> None:
    assert TABLE.read_text() == render(read_cases(), find_tests()), f"docs/attack-tests.md is stale: run {COMMAND}"


def test_the_finder_sees_numbers_and_sentences() -> None:
    test = AttackTest("tests/attacks/test_pictures.py", "test_074_what_is_no_picture_is_415")
    assert (test.number, test.sentence) == (74, "what is no picture is 415")
    assert AttackTest("tests/attacks/test_pictures.py", "test_a_neighbour").number is None
