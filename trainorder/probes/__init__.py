"""What a model has become: diagnostics over any two checkpoints, as rows of one long table.

A probe is a function of a `base.Pair` and one line in `trainorder.registries.PROBES`. It reads weights, evaluations and data
that exist, runs the models forward (one also backward) where it says so, and trains nothing.

    updates          which weights changed, in how many directions, and where two updates meet
    answers          forms, lengths and scores of the answers that evaluations keep
    diversity        how varied they are
    behaviour        divergence, plasticity and gradients on these answers
    representation   dimensions of hidden states, and how far single directions change single tasks
"""
