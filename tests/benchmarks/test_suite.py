"""Every suite can be asked what it would measure: names are unique, references take part, loads are stated."""

from __future__ import annotations

import importlib
import random
from collections import Counter

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.case import FULL, QUICK, Scale
from benchmarks.suite.kv import mixed


@pytest.mark.parametrize("scale", [FULL, QUICK], ids=["full", "quick"])
def test_every_case_states_its_question_its_load_and_its_reference(scale: Scale) -> None:
    names: Counter[str] = Counter()
    for name in NAMES:
        for case in importlib.import_module(f"benchmarks.suite.{name}").cases(scale):
            names[case.name] += 1
            assert case.name.split("/")[0] == name
            assert case.question.endswith("?"), case.name
            assert case.load, case.name
            assert case.reference in {contender.name for contender in case.contenders}, case.name
            assert set(case.sizes) <= {contender.name for contender in case.contenders}, case.name
    assert max(names.values()) == 1


def test_the_mix_reads_four_times_as_often_as_it_writes_and_touches_every_key_once() -> None:
    state = random.getstate()
    calls = mixed(lambda key: ("get", key), lambda key, _value: ("put", key), 1_000)
    kinds = Counter(kind for kind, _ in calls)
    assert kinds == {"get": 800, "put": 200}
    assert len({key for _, key in calls}) == 1_000
    assert random.getstate() == state, "it has a generator of its own"
