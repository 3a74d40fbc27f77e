"""Every public class of the mathematics has an example that runs, and its formula and source where it has one."""

from __future__ import annotations

from collections.abc import Iterator
import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

from flow_vla_core import encoders, flows, generators, networks
from flow_vla_core.flows import NormalizingFlow, Transform, Univariate
from flow_vla_core.generators import Generator
from flow_vla_core.generators.couplings import Coupling
from flow_vla_core.generators.paths import Path
from flow_vla_core.networks import VelocityNetwork

SOURCE = re.compile(r'(arXiv )?\d{4}\.\d{5}|[A-Z][a-z]+, .*\d{4}')
FORMULA = re.compile(r'``[^`]*([=+*/^(|])[^`]*``', re.DOTALL)
HAVE_SOURCES = (Transform, NormalizingFlow, Univariate, Generator, Path, VelocityNetwork)
PLAIN = ('Regression', 'Refined')  # what they compute is in no paper of its own


def public_classes() -> Iterator[type]:
    """Yield what the modules of the four packages declare public, each from where it is defined."""
    modules = ['flow_vla_core.solvers', 'flow_vla_core.divergence']
    for package in (flows, generators, networks, encoders):
        modules += [found.name for found in pkgutil.walk_packages(package.__path__, f'{package.__name__}.')]
    for module in map(importlib.import_module, modules):
        for name in getattr(module, '__all__', ()):
            found = getattr(module, name)
            if inspect.isclass(found) and found.__module__ == module.__name__:
                yield found


def text_of(found: type) -> str:
    """Return the docstring that a class has itself."""
    return inspect.cleandoc(found.__dict__.get('__doc__') or '')


CLASSES = [found for found in public_classes() if not inspect.isabstract(found)]
names = {'ids': lambda found: found.__name__}


def test_the_classes_are_found() -> None:
    assert len(CLASSES) > 60
    assert {'RealNVP', 'FlowMatching', 'UNet1d', 'Solution'} <= {each.__name__ for each in CLASSES}


@pytest.mark.parametrize('found', CLASSES, **names)
def test_a_public_class_shows_how_it_is_used(found: type) -> None:
    text = text_of(found)
    assert text.count('Example:') == 1
    examples = doctest.DocTestParser().get_examples(text)
    assert any(each.want for each in examples), 'an example shows what comes out'


@pytest.mark.parametrize('found', [each for each in CLASSES if issubclass(each, (*HAVE_SOURCES, Coupling))], **names)
def test_what_computes_something_says_its_formula(found: type) -> None:
    before, _, _ = text_of(found).partition('Args:')
    if found.__name__ != 'Independent':  # the identity
        assert FORMULA.search(before), before


@pytest.mark.parametrize('found', [each for each in CLASSES if issubclass(each, HAVE_SOURCES)], **names)
def test_what_comes_from_a_paper_names_it(found: type) -> None:
    if found.__name__ not in PLAIN:
        before, _, _ = text_of(found).partition('Args:')
        assert SOURCE.search(before), before
