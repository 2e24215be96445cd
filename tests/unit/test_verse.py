"""The taste of real verse: what it likes, and that no text gains by being longer."""

import random

import pytest

from trainorder.tasks.base import Problem
from trainorder.tasks.verse import Verse, lines_asked, rhymes

PROBLEM = Problem("v/1", "v", "Write a four-line poem about the sea and a lantern.", None, None)
GOOD = """The lantern burns above the sea,
A silver wind is running free,
The harbor dreams of distant land,
And morning gathers on the sand."""
POEMS = [
    GOOD,
    "The sea is cold today\nI walk along the bay\nA lantern in my hand\nmy feet upon the sand",
    "waves\nwaves and foam\nthe night is deep\nsailors sleep",
    "The sea.\nThe sea is big.\nI like the sea.\nThe sea is nice.",
    "the lantern light upon the wave",
]


def taste(text: str, problem: Problem = PROBLEM) -> float:
    value = Verse.taste(text, problem).value
    assert value is not None
    return value


def test_verse_that_rhymes_in_metre_on_the_topic_beats_what_lacks_one_of_these():
    assert taste(GOOD) > 0.9
    worse = {
        "no rhyme": GOOD.replace("sand", "shore").replace("free", "wild"),
        "no topic": GOOD.replace("lantern", "candle").replace("sea", "tree"),
        "no metre": GOOD.replace("A silver wind", "Extraordinary international hurricanes"),
        "too few lines": "\n".join(GOOD.splitlines()[:2]),
        "one line again and again": "\n".join([GOOD.splitlines()[0]] * 4),
        "prose": GOOD.replace("\n", " "),
        "no words": "xqzt brrm klop zzu\n" * 4,
        "nothing": "",
    }
    found = {name: taste(text) for name, text in worse.items()}
    assert max(found.values()) < taste(GOOD) - 0.05, found
    assert found["nothing"] == 0
    assert found["no words"] < 0.05


def longer(text: str, rng: random.Random) -> str:
    """A longer text that says nothing more."""
    lines = text.splitlines()
    place = rng.randrange(len(lines))
    how = rng.randrange(6)
    if how == 0:
        return "\n".join([*lines, *lines])
    if how == 1:
        return "\n".join([*lines, lines[place]]) if len(lines) >= 4 else text + " " + text
    if how == 2:  # words again
        lines[place] += " " + lines[place]
    elif how == 3:
        words = lines[place].split()
        spot = rng.randrange(len(words))
        words[spot:spot] = [words[spot]] * rng.randint(2, 5)
        lines[place] = " ".join(words)
    elif how == 4:
        lines = [f"{line} and so it is and so it was and ever will it be" for line in lines]
    else:
        lines += ["It was a very good day and I was very glad of it"] * 5 if len(lines) >= 4 else []
        lines[-1] += " indeed" * 9
    return "\n".join(lines)


@pytest.mark.parametrize("poem", POEMS)
def test_no_text_gains_by_length_alone(poem: str):
    rng = random.Random(0)
    for _ in range(200):
        text = longer(poem, rng)
        assert len(text) >= len(poem)
        assert taste(text) <= taste(poem) + 1e-9, text


def test_damage_lowers_the_taste_on_average_and_depends_on_the_generator_alone():
    damaged = [Verse.corrupt(GOOD, random.Random(seed)) for seed in range(40)]
    assert sum(map(taste, damaged)) / 40 < taste(GOOD) - 0.1
    assert damaged == [Verse.corrupt(GOOD, random.Random(seed)) for seed in range(40)]


def test_rhymes_are_heard_and_not_read():
    assert rhymes("light", "kite")
    assert rhymes("morning", "warning")
    assert not rhymes("love", "move")
    assert not rhymes("xqz", "xqz")


def test_the_number_of_lines_is_the_prompts():
    assert [lines_asked(text) for text in ("Two lines, please", "a haiku", "12-line ode", "ode")] == [2, 3, 12, 4]  # fmt: skip
    couplet = Problem("v/2", "v", "Write a couplet about the sea and a lantern.", None, None)
    assert taste("\n".join(GOOD.splitlines()[:2]), couplet) > 0.9
    assert taste(GOOD, couplet) < 0.6
