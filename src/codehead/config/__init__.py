"""What a decision layer is, in one frozen object, with its price and the budgets that choose it. No torch is needed."""

from codehead.config.decision import DecisionConfig
from codehead.config.size import DecisionSize, ModelShape

__all__ = ["DecisionConfig", "DecisionSize", "ModelShape"]
