"""From a transfer matrix to an order of phases: the best one, what it predicts, and whether the data identify it.

Omni-Thinker (arXiv 2507.14783) assumes that transfer does not depend on the starting checkpoint and that training a
task brings it back to its own best. The final score of task t is then its score just after its last own phase plus what
every later phase does to it, and the best order solves a linear ordering problem: maximise the sum over j before k of
gain[j, k], where gain[j, k] is what training k after j does to j. Both are assumptions: `predict` has predictors that
drop one or the other, and `misfit` says how far they were off on the orders that were measured.

    search      gain -> best order, exact to 12 phases, a heuristic with its gap beyond
    rules       named ways to choose an order (RULES): exact, omni_greedy, least_forgettable_first, random, ...
    predict     scores -> gain, and final scores of an order (PREDICTORS)
    misfit      errors at measured orders -> the scale of the model's error, and what it may be at the other orders
    confidence  gain in all resamples -> the order, P(optimal), expected regret, P(i before j), and the reasons against it
"""

from trainorder.order.confidence import Reason, Recommendation, recommend
from trainorder.order.misfit import MIN_ORDERS, Misfit
from trainorder.order.predict import (
    PREDICTORS,
    Measured,
    Step,
    additive,
    extrapolate,
    gains,
    slopes,
)
from trainorder.order.rules import RULES, TEXT_RULES, word_likeness
from trainorder.order.search import (
    ENUMERATED,
    EXACT,
    best_order,
    every_order,
    exact_orders,
    heuristic_order,
    optimality_gap,
    order_value,
    upper_bound,
)

__all__ = [
    "ENUMERATED",
    "EXACT",
    "MIN_ORDERS",
    "PREDICTORS",
    "RULES",
    "TEXT_RULES",
    "Measured",
    "Misfit",
    "Reason",
    "Recommendation",
    "Step",
    "additive",
    "best_order",
    "every_order",
    "exact_orders",
    "extrapolate",
    "gains",
    "heuristic_order",
    "optimality_gap",
    "order_value",
    "recommend",
    "slopes",
    "upper_bound",
    "word_likeness",
]
