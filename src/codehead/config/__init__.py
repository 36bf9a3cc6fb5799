"""A decision layer described by one frozen object, its cost, and the budgets that choose it. Needs no torch."""

from codehead.config.decision import DecisionConfig
from codehead.config.size import DecisionSize, ModelShape

__all__ = ["DecisionConfig", "DecisionSize", "ModelShape"]
