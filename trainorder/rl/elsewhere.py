"""Curricula of other fields: what of each lives here, or why nothing does. Data of docs/methods.md, run by nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Elsewhere:
    """One idea from a field that this project does not train in."""

    name: str
    field: str
    paper: str
    """arXiv number; empty where there is none."""
    idea: str
    here: str
    """What does the same here, or why nothing does."""


ELSEWHERE = (
    Elsewhere(
        name="Ordered learning by difficulty across clients",
        field="federated learning",
        paper="2212.12712",
        idea="The global model scores samples, clients train from easy to hard; it helps the more, the more their data differ.",
        here="Clients are tasks: easy first inside each task (`rl: {items: {in_order: {by: rate}}}`) where tasks conflict. Nothing "
        "of privacy or of averaging clients maps; averaging nodes is a merge.",
    ),
    Elsewhere(
        name="EfficientTrain",
        field="vision",
        paper="2211.09703",
        idea="Low-frequency crops and weak augmentation first, the full input later, for less compute.",
        here="Short before long: `rl: {items: {paced: {by: length}}}` for prompts, `train_long_think_short` for answers, in the other "
        "direction. Frequencies of an image have no counterpart in tokens.",
    ),
    Elsewhere(
        name="Denoising difficulty curriculum",
        field="diffusion",
        paper="2403.10348",
        idea="Clusters of noise levels are opened from easy to hard, each once the ones before it have converged.",
        here="Opening tasks when the newest has levelled off: `rl: {curriculum: unlock}`; levels of one task: `rl: {items: "
        "open_levels}`. There are no timesteps to cluster.",
    ),
    Elsewhere(
        name="Experience-inspired creation",
        field="multi-modal generation",
        paper="2209.02427",
        idea="Negative examples grow harder over training.",
        here="Of judged tasks: opponents in the order of a judge's confidence are not implemented; a stronger opponent is another "
        "reference text of the rows. Verified tasks have no negatives.",
    ),
    Elsewhere(
        name="Learnability-guided distillation",
        field="vision, data distillation",
        paper="",
        idea="Images that are hard for the model now and easy for a reference are kept.",
        here="The score carries over in pass rates: `rl: {items: learnability_gap}` with `rl.teacher`. Synthesising the images does not.",
    ),
    Elsewhere(
        name="SARI",
        field="audio",
        paper="2504.15900",
        idea="Supervised warm-up on structured thoughts, then GRPO from easy to hard audio questions.",
        here="The warm-up is this project's first stage, the order `rl: {items: {in_order: {by: rate}}}`. Nothing is specific to audio.",
    ),
    Elsewhere(
        name="Continuously teach",
        field="vision, class-incremental learning",
        paper="2211.15470",
        idea="Classes are ordered by how alike their features are, so that neighbours come near or far from each other.",
        here="Tasks are the classes: an order of phases by the distance of their embeddings is an `orders:` line of your own. How the "
        "paper measures and sorts was not found beyond its abstract.",
    ),
    Elsewhere(
        name="PuzzleCraft, Wiki-R1, MoDoMoDo",
        field="vision and language",
        paper="2512.14944",
        idea="Difficulty weights of puzzles, gap levels of retrieved passages (2603.05256), mixtures of image tasks (2505.24871).",
        here="Weights, levels and mixtures need no image: `puzzlecraft`, `distracted` and `wiki_r1`, and the quadratic surrogate "
        "(trainorder/order/mixture.py). Jigsaws and image retrieval are left out.",
    ),
)
