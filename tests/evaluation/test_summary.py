"""Names of classifiers lead to the keys of files, and back."""

import pytest

from vidrobust.evaluation.summary import classifier_key, classifier_name


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("own head", "head"),
        ("linear probe", "trained_probe"),
        ("kNN", "trained_knn"),
        # of a protocol that fits a classifier
        ("finetune", "trained_finetune"),
    ],
)
def test_each_classifier_has_a_key_that_leads_back_to_it(name, key):
    assert classifier_key(name) == key
    assert classifier_name(key) == name
