import math

import pytest
import torch

from trainorder.metrics.diversity import compression_ratio, distinct_n, similarity, vendi


def test_distinct_counts_pairs_over_all_texts():
    # a b, b c | a b, b d: three different of four
    assert distinct_n(["a b c", "a b d"], 2) == 3 / 4
    assert distinct_n(["a b a b"], 1) == 2 / 4


def test_distinct_never_pairs_words_of_two_texts():
    assert math.isnan(distinct_n(["a", "b"], 2))


def test_compression_ratio_is_bytes_over_gzip_bytes_and_the_same_every_time():
    texts = ["the sun rises over the hill"] * 50
    # 50 lines of 27 letters and 49 line ends
    assert compression_ratio(texts) == compression_ratio(texts)
    size = (50 * 27 + 49) / compression_ratio(texts)
    assert size == pytest.approx(round(size))
    assert 20 < size < 80


def test_vendi_counts_the_planted_clusters():
    texts = ["a b"] * 3 + ["c d"] * 3 + ["e f"] * 3
    assert vendi(texts) == pytest.approx(3.0)


def test_vendi_of_unequal_clusters_is_the_exponential_of_their_entropy():
    # shares 3/4 and 1/4: exp(0.5623) = 1.7548
    assert vendi(["a", "a", "a", "b"]) == pytest.approx(1.7548, abs=1e-4)


def test_vendi_does_not_depend_on_the_order_of_texts():
    texts = ["a b c", "b c d", "x", "", "a c"]
    assert vendi(texts) == pytest.approx(vendi(texts[::-1]), rel=1e-12)


def test_similarity_counts_words_and_pairs():
    # "a b": a, b, ab; "a b b": a, b twice, ab, bb. dot 1 + 2 + 1 = 4, norms sqrt(3), sqrt(7)
    expected = 4 / math.sqrt(21)
    torch.testing.assert_close(
        similarity(["a b", "a b b"]),
        torch.tensor([[1.0, expected], [expected, 1.0]], dtype=torch.float64),
    )


def test_empty_answers_are_one_kind_of_answer():
    assert vendi(["", "", ""]) == pytest.approx(1.0)
    assert vendi(["", "a"]) == pytest.approx(2.0)


def test_no_texts_have_no_variety():
    assert math.isnan(vendi([]))
    assert math.isnan(distinct_n([]))
