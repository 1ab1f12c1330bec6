"""A deployment's three secrets, made at random or from a given one."""

from __future__ import annotations

from dataclasses import astuple

from protocol.deployment_secrets import DeploymentSecrets


def test_one_secret_always_gives_the_same_three_which_are_different() -> None:
    first, again, other = (DeploymentSecrets.derived(secret) for secret in ("a" * 32, "a" * 32, "b" * 32))
    assert first == again
    assert len({*astuple(first), *astuple(other)}) == 6


def test_derived_secrets_are_as_long_as_random_ones() -> None:
    pair = astuple(DeploymentSecrets.derived("a" * 32)), astuple(DeploymentSecrets.generate())
    assert [len(each) for each in pair[0]] == [len(each) for each in pair[1]]
