"""Imports without garbage collections."""

import gc

import pytest

from bayesrm_fast.cli.imports import without_collections


def test_nothing_is_collected_within():
    with without_collections():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_import_that_fails_leaves_collections_on():
    with pytest.raises(ImportError), without_collections():
        raise ImportError
    assert gc.isenabled()


def test_who_has_no_collections_is_given_none():
    gc.disable()
    try:
        with without_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
