"""Published ideas without an entry in the registry: what of each lives here, or why nothing does. Data of docs/methods.md, run by nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Elsewhere:
    """One idea that is no preset and no piece of its own."""

    name: str
    field: str
    """The field that it comes from, or what it belongs to."""
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
        here="Phases are the classes: the order rules `near_first_by_text` and `far_first_by_text` (cosine of mean TF-IDF vectors of the prompts "
        "that evaluations keep), and `near_first` and `far_first`, where likeness is what two phases do each other. The report compares them "
        "with the others. Beyond its abstract the paper was not read.",
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
"""Of fields that this project does not train in."""

HERE_OR_LEFT_OUT = (
    Elsewhere(
        name="Answer re-ranking curriculum",
        field="weights",
        paper="2004.14269",
        idea="Easy problems count more at first, all alike after m epochs.",
        here="The weight `answer_reranking`, with `anti` for hard ones first; easy is what the group's own grades "
        "say.",
    ),
    Elsewhere(
        name="CLIMB's pacing",
        field="items",
        paper="2311.08886",
        idea="A cap on the difficulty percentile rises over training.",
        here="`rl: {items: paced}` with five shapes. Its curricula of vocabulary and of objectives belong to "
        "pretraining and are left out.",
    ),
    Elsewhere(
        name="FUT",
        field="order predictor",
        paper="2505.22042",
        idea="The effect of another order of samples, from stored updates of one run.",
        here="The predictor `stage_delta`: changes of whole phases, extrapolated. Stored updates per step, second "
        "order and the genetic search are left out.",
    ),
    Elsewhere(
        name="Averaging instead of decay",
        field="training",
        paper="2511.18903",
        idea="A constant rate and an average of the last checkpoints, where the best data come last.",
        here="`rl: {average: {last: 6}}`, with `kind: ema` or `lr_end: 0.33` for the paper's other two.",
    ),
    Elsewhere(
        name="Divide or conquer",
        field="evaluation",
        paper="2402.15000",
        idea="One model writes sub-questions, another one solves.",
        here="`evaluation: {ways: [decompose]}`: base or trained in each role, main effects and interaction.",
    ),
    Elsewhere(
        name="LLM programs",
        field="evaluation",
        paper="2305.05364",
        idea="A program holds the state; each call sees its own step only.",
        here="`evaluation: {ways: [program, evidence]}`, at the tokens of the direct answer. Tree search is left "
        "out.",
    ),
    Elsewhere(
        name="DiffAdapt",
        field="evaluation",
        paper="2510.19669",
        idea="Temperature and length by difficulty, told from hidden states.",
        here="`evaluation: {ways: [tiers]}`; agreement of samples tells the tier instead of a trained probe.",
    ),
    Elsewhere(
        name="Majority, pass@k",
        field="evaluation",
        paper="2203.11171",
        idea="The most frequent of k answers; whether one of k succeeds.",
        here="`evaluation: {ways: [majority, pass_at]}`; every evaluation has pass@k of all its samples.",
    ),
    Elsewhere(
        name="Small subnetworks",
        field="probes",
        paper="2505.11711",
        idea="RL changes few weights, in nearly all directions; updates of several runs overlap.",
        here="The probes `sparsity`, `overlap`, `rank`, `cosine`; `trainorder probe --predict` holds them against forgetting. Training the "
        "subnetwork alone is left out: probes train nothing.",
    ),
    Elsewhere(
        name="RL's Razor",
        field="probes",
        paper="2509.04259",
        idea="KL on the new task predicts what is forgotten of the old ones.",
        here="The probe `kl`, both ways; `trainorder probe --predict --only kl` asks it of every phase.",
    ),
    Elsewhere(
        name="Echo chamber",
        field="probes",
        paper="2504.07912",
        idea="RL ends in one form of answer that pretraining taught, not always the best.",
        here="The probe `formats`: shares, their entropy, score by form, alarms for one form and for a wrong one. Forms are ten patterns; "
        "the paper's come from its known pretraining data.",
    ),
    Elsewhere(
        name="Fractured representations",
        field="probes",
        paper="2505.11581",
        idea="Single weights are swept to see whether one factor moves alone.",
        here="The probes `perturbation` (along the update, its first direction, a random one) and `participation_ratio`. Untested on "
        "language models there: exploratory.",
    ),
    Elsewhere(
        name="Effective diversity",
        field="probes",
        paper="2504.12522",
        idea="Diversity of outputs above a quality gate only.",
        here="The probe `diversity`: right answers only, beside all of them.",
    ),
    Elsewhere(
        name="RL squeezes, SFT expands",
        field="probes",
        paper="2509.21128",
        idea="RL narrows the routes of reasoning, SFT widens them.",
        here="The probes `diversity` (answers) and `queries` (what agents ask their tools) between any two nodes. Graphs of reasoning "
        "steps are left out: they need a segmenter of long thoughts.",
    ),
    Elsewhere(
        name="Gained and lost problems (RECALL)",
        field="probes",
        paper="2606.03087",
        idea="A stable mean hides problems that were lost.",
        here="The probe `turnover`; the report has gained and lost problems per arm.",
    ),
    Elsewhere(
        name="Plasticity",
        field="probes",
        paper="2605.12484",
        idea="Does a checkpoint still learn: a short run on a fresh task, dormant units, rank of states.",
        here="The probe `plasticity` has what can be read; the report compares areas under reward curves where the plan trains the same "
        "phase from the base and from later checkpoints.",
    ),
    Elsewhere(
        name="Alignment of gradients as a predictor of transfer",
        field="probes",
        paper="2606.25178",
        idea="TAC's alignment, free beside training, tells which tasks help each other.",
        here="The metric `task_alignment` per step of a phase with several tasks, and the probe `gradient_cosine` at any checkpoint, which "
        "`trainorder probe --predict` holds against forgetting beside transfer from the base and the change of entropy.",
    ),
    Elsewhere(
        name="Merges",
        field="merges",
        paper="2306.01708",
        idea="One checkpoint from several specialists, without training.",
        here="`merges:` of params.yaml: average, task arithmetic, TIES, DARE, DARE-TIES, SCE, RAM.",
    ),
    Elsewhere(
        name="CGAR",
        field="curricula",
        paper="2511.08653",
        idea="A small recursive model's depth grows in three stages; later supervision steps weigh less.",
        here="A decoder has no recursion depth to stage. What grows by progress here: chains (`plan: [composed]`), "
        "the open share of problems (`items: paced`), budgets (`length_budget`).",
    ),
    Elsewhere(
        name="Tree-Instruct",
        field="curricula",
        paper="2308.05696",
        idea="A language model adds nodes to an instruction's tree; complexity helps, easy to hard does not.",
        here="Left out: it needs another model to rewrite prompts. Rows with a count of nodes in their meta are "
        "sorted by `in_order: {by: KEY}`.",
    ),
    Elsewhere(
        name="CLIMB, mixture bootstrapping",
        field="curricula",
        paper="2504.13161",
        idea="A corpus is clustered, and a regressor proposes mixtures in rounds.",
        here="`trainorder mixture` is one round: a quadratic fit to the measured mixtures names the next one. "
        "Clusters and rounds are left out.",
    ),
    Elsewhere(
        name="PUDF's target success rate",
        field="items",
        paper="2408.05326",
        idea="Problems are open up to b = theta + ln(1 / q - 1) for a wanted rate q.",
        here="No option of its own: `items: {pudf: {above: -1.0986}}` is q = .75, `above: 0` is q = .5. Nelder-Mead "
        "and the crowd's variational fit are left out.",
    ),
    Elsewhere(
        name="PuzzleCraft's RAC",
        field="metrics",
        paper="2512.14944",
        idea="A judge says whether the reasoning supports the answer, a moving average of which is watched.",
        here="Left out: judges here compare answers, not reasons with answers.",
    ),
    Elsewhere(
        name="AEPO without extra rollouts (DCPO)",
        field="entropy",
        paper="2510.08141",
        idea="The authors' repository also mixes p_T / p on right answers into the advantage.",
        here="Left out: `aepo` is the paper's form, with rollouts at another temperature.",
    ),
    Elsewhere(
        name="SPEAR's void and repetitive rows",
        field="imitation",
        paper="2509.22601",
        idea="Rows without a usable turn or that repeat themselves are dropped before the update.",
        here="Overlong rows (`finished_only`) and groups of low spread (`highest_spread`) are dropped; void turns and "
        "repetitions are not looked for.",
    ),
    Elsewhere(
        name="Entropy-SFT as a stage",
        field="entropy",
        paper="2508.03178",
        idea="The cold start learns only tokens of high cross-entropy and low entropy.",
        here="`entropy_sft` does it inside the RL step on expert rows. `sft:` and phases of `kind: sft` learn all "
        "tokens.",
    ),
    Elsewhere(
        name="Instructions that are simplified, delusive or empty",
        field="controls",
        paper="2305.11383",
        idea="Arms of instruction tuning that show how much of a gain is the format.",
        here="Left out as arms: a prompt's wording is the task's own, so another one is a task of your own rows. "
        "The probe `format_only` parts a gain into form and content, `random_valid` scores a guess.",
    ),
    Elsewhere(
        name="A run rewarded for format alone",
        field="controls",
        paper="2305.11383",
        idea="What such a run gains is no skill.",
        here="No preset: `rl: {method: {reward: [keeps_format]}}` in a variant is that run; "
        "`surrogate_format_length` adds length.",
    ),
    Elsewhere(
        name="Quadratic fit of forgetting on KL",
        field="probes",
        paper="2509.04259",
        idea="Forgetting = a + b KL + c KL^2, with R^2; KL from samples by the estimators k1 or k3.",
        here="The probe `kl` sums exactly over the vocabulary, so it needs no estimator (the loss term `kl` has k1, "
        "k2, k3). `trainorder probe --predict` gives Spearman with an interval, no fit: few pairs and three "
        "coefficients.",
    ),
    Elsewhere(
        name="Self-BLEU",
        field="probes",
        paper="2310.06452",
        idea="Mean BLEU of each sample against the others.",
        here="Left out: `diversity` has distinct-2, expected distinct words, compression and Vendi, which measure "
        "the same.",
    ),
    Elsewhere(
        name="NoveltyBench",
        field="probes",
        paper="",
        idea="Classes of equal meaning among k generations, and a utility that discounts later ones.",
        here="Left out: a trained classifier decides what is equal. `diversity` has the entropy of answers and the "
        "Vendi score.",
    ),
    Elsewhere(
        name="CrPO",
        field="probes",
        paper="2505.14442",
        idea="Novelty, diversity, surprise and quality as parts of a preference objective.",
        here="Left out: its weights were not found. Diversity is measured by the probe, not rewarded.",
    ),
    Elsewhere(
        name="pass@(k, T)",
        field="evaluation",
        paper="2604.14877",
        idea="Success within k samples of at most T turns.",
        here="`pass_at` has k only: answers here are one turn, so there is no T.",
    ),
    Elsewhere(
        name="SLERP",
        field="merges",
        paper="",
        idea="Spherical interpolation of two models, tensor by tensor.",
        here="Left out: it joins two checkpoints, merges here join one per phase.",
    ),
    Elsewhere(
        name="Greedy soup",
        field="merges",
        paper="",
        idea="A model joins the average only if the dev score does not fall.",
        here="Left out: `average` is the uniform soup, and `scale` is what dev scores choose.",
    ),
    Elsewhere(
        name="McNemar's test",
        field="statistics",
        paper="",
        idea="Discordant pairs of two classifiers on the same problems.",
        here="Left out: it knows one run per side and right or wrong only. Differences here are paired by problem, "
        "with intervals over seeds and problems, also of graded scores.",
    ),
    Elsewhere(
        name="Bradley-Terry over arms",
        field="statistics",
        paper="",
        idea="Arms are ranked by strengths fitted to pairwise verdicts, with style as covariates.",
        here="Left out: every arm answers the same problems against the same reference, so mean win rates compare. "
        "Bradley-Terry is the loss of `kind: preference` judges.",
    ),
    Elsewhere(
        name="Length-controlled win rate",
        field="judges",
        paper="",
        idea="A logistic regression takes the length out of the verdicts.",
        here="Left out: the probe `length_accuracy` shows scores by length instead of correcting them.",
    ),
    Elsewhere(
        name="Kappa, transitivity, repeat agreement",
        field="judges",
        paper="",
        idea="How consistent a judge is with others, itself and over triples.",
        here="Left out: a judge is asked in both positions, is held to `min_agreement` where there are pairs to measure "
        "it on, and each verdict is kept, so that it is asked once.",
    ),
    Elsewhere(
        name="Gao's scaling fit",
        field="judges",
        paper="2210.10760",
        idea="Gold and proxy reward as functions of the root of the KL, for best-of-n and RL; where to stop.",
        here="The report warns where the judge's score rises and the hidden taste falls. The fit and best-of-n are "
        "left out: a phase ends in one checkpoint, not a curve of them.",
    ),
)
"""What is an option of something else, or is not built."""
